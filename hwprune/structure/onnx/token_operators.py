"""The nodes that reduce tokens in an ONNX graph: what `hwprune.structure.torch.token_nodes` computes, in operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwprune.structure.borders import MERGE, SHORTEST, Crossing, Reduction

END = 2**62


def reduce_tokens(
    reduction: Reduction, crossing: Crossing, attention: str, source: str, output: str, opset: int, kind: int, *, first: bool
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes and constants that make ``output`` of ``source``, a tensor that crosses the border.

    Args:
        attention: tensor of the attention's weights, (batch, heads, queries, keys).
        kind: element type of the border's own tensor.
        first: nothing has crossed it yet: what all that cross share is computed now.
    """
    make = _Maker(opset, output, kind)
    if reduction.form == MERGE:
        _merged(make, source, reduction, output)
        return make.nodes, make.constants
    index = f"{crossing.border}/{crossing.form}/index"
    if first:
        _staying(make, reduction, attention, index)
    made = source
    for place, dim in enumerate(crossing.dims):
        last = place == len(crossing.dims) - 1
        made = _along(make, made, index, dim, crossing.rank, output if last else None)
    return make.nodes, make.constants


def _staying(make: _Maker, reduction: Reduction, weights: str, index: str) -> None:
    """(batch, fixed + left, 1): numbers of the tokens that stay."""
    fixed = reduction.fixed
    if fixed:
        weights = make("Slice", weights, make.ints([0]), make.ints([fixed]), make.ints([2]))
    if reduction.masked:  # what is masked from everything has no attention
        weights = make("Where", make("IsNaN", weights), make.number(0), weights)
    if fixed:
        found = make.reduced("ReduceMean", weights, [1, 2], keep=False)
        free = make("Slice", found, make.ints([fixed]), make.ints([END]), make.ints([1]))
    elif reduction.masked:
        first = make.reduced("ReduceMean", weights, [1, 2], keep=True)
        asked = make("Cast", make("Greater", first, make.number(0)), to=make.kind)
        free = make.reduced("ReduceMean", make("MatMul", asked, weights), [1, 2], keep=False)
    else:
        free = make.reduced("ReduceMean", weights, [1, 2], keep=False)
    _, chosen = make.several("TopK", [free, make.ints([reduction.left])], 2, axis=1, largest=1, sorted=1)
    if fixed:
        none = make("Mul", make("Slice", chosen, make.ints([0]), make.ints([1]), make.ints([1])), make.ints(0))
        front = [make("Add", none, make.ints(number)) if number else none for number in range(fixed)]
        chosen = make("Concat", *front, make("Add", chosen, make.ints(fixed)), axis=1)
    make("Unsqueeze", chosen, make.ints([2]), output=index)


def _along(make: _Maker, x: str, index: str, dim: int, rank: int, output: str | None) -> str:
    """The entries at ``index``, (batch, left, 1), along a dim."""
    if dim == 1:
        return make("GatherND", x, index, output=output, batch_dims=1)
    # The dim is brought to the place behind the batch, and back.
    order = [0, dim, *(place for place in range(1, rank) if place != dim)]
    moved = make("GatherND", make("Transpose", x, perm=order), index, batch_dims=1)
    return make("Transpose", moved, output=output, perm=[order.index(place) for place in range(len(order))])


def _merged(make: _Maker, x: str, reduction: Reduction, output: str) -> None:
    fixed, gone = reduction.fixed, reduction.arriving - reduction.left
    axis, two = make.ints([1]), make.ints([2])
    sources, targets = (make("Slice", x, make.ints([fixed + start]), make.ints([END]), axis, two) for start in (0, 1))
    count_sources, count_targets = (reduction.arriving + 1) // 2, reduction.arriving // 2
    turned = make("Transpose", _normal(make, targets), perm=[0, 2, 1])
    alike = make("MatMul", _normal(make, sources), turned)
    likeness = make.reduced("ReduceMax", alike, [2], keep=False)
    target = make("ArgMax", alike, axis=2, keepdims=0)
    _, order = make.several("TopK", [likeness, make.ints([count_sources])], 2, axis=1, largest=1, sorted=1)
    leaving = make("Unsqueeze", make("Slice", order, make.ints([0]), make.ints([gone]), axis), two)
    into = make("GatherND", target, leaving, batch_dims=1)
    places = make.constant(np.arange(count_targets, dtype=np.int64)[:, None])
    one_hot = make("Cast", make("Equal", make("Unsqueeze", into, axis), places), to=make.kind)
    moved = make("GatherND", sources, leaving, batch_dims=1)
    sums = make("Add", targets, make("MatMul", one_hot, moved))
    counts = make("Add", make("ReduceSum", one_hot, two, keepdims=1), make.number(1))
    parts = [make("Div", sums, counts)]
    if count_sources > gone:
        rest = make("Unsqueeze", make("Slice", order, make.ints([gone]), make.ints([END]), axis), two)
        parts.insert(0, make("GatherND", sources, rest, batch_dims=1))
    if fixed:
        parts.insert(0, make("Slice", x, make.ints([0]), make.ints([fixed]), axis))
    make("Concat", *parts, output=output, axis=1)


def _normal(make: _Maker, x: str) -> str:
    """Tokens of length 1."""
    length = make.reduced("ReduceL2", x, [2], keep=True)
    return make("Div", x, make("Max", length, make.number(SHORTEST)))


class _Maker:
    """Collects nodes and constants under names of their own."""

    def __init__(self, opset: int, output: str, kind: int) -> None:
        self.opset, self._unique, self.kind = opset, output, kind
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def __call__(self, kind: str, *inputs: str, output: str | None = None, **options: Any) -> str:
        return self.several(kind, inputs, 1, output, **options)[0]

    def several(self, kind: str, inputs: Sequence[str], count: int, output: str | None = None, **options: Any) -> list[str]:
        name = self._name(kind)
        outputs = [output or (name if count == 1 else f"{name}_{place}") for place in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=name, **options))
        return outputs

    def reduced(self, kind: str, x: str, axes: Sequence[int], *, keep: bool) -> str:
        if self.opset >= 18:  # from there the axes are an input
            return self(kind, x, self.ints(axes), keepdims=int(keep))
        return self(kind, x, axes=list(axes), keepdims=int(keep))

    def ints(self, values: int | Sequence[int]) -> str:
        return self.constant(np.asarray(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.asarray(value, helper.tensor_dtype_to_np_dtype(self.kind)))

    def constant(self, array: Any) -> str:
        name = self._name("constant")
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _name(self, kind: str) -> str:
        return f"{self._unique}/{kind}_{len(self.nodes) + len(self.constants)}"
