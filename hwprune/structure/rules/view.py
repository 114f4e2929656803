"""Operators that move, merge, split or pick dims without computing."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hwprune.structure.dims import ONE, Dim, Product
from hwprune.structure.rules.table import Call, Kept, Value, read_argument, rule

aten = torch.ops.aten


@rule(aten.view.default, aten._unsafe_view.default)
def view(call: Call, x: Value, size: Any) -> Value:
    result = call.regroup(x, call.sizes)
    call.resize("size", result.dims)
    return result


@rule(aten.reshape.default)
def reshape(call: Call, x: Value, shape: Any) -> Value:
    result = call.regroup(x, call.sizes)
    call.resize("shape", result.dims)
    return result


@rule(aten.flatten.using_ints, aten.unsqueeze.default)
def regroup(call: Call, x: Value, *_: Any) -> Value:
    return call.regroup(x, call.sizes)


@rule(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze(call: Call, x: Value, which: int | list[int] | None = None) -> Value:
    chosen = range(len(x)) if which is None else [which] if isinstance(which, int) else which
    gone = sorted({position % len(x) for position in chosen if x[position].size == 1})

    def edit(node: fx.Node, kept: Kept) -> None:
        # An axis that is cut to a single index must not vanish: name the dims that had size 1 before.
        node.target = aten.squeeze.dims
        node.args = (node.args[0], gone)
        node.kwargs = {}

    call.on_cut(edit)
    stays = [position for position in range(len(x)) if position not in gone]
    return Value(tuple(x.dims[p] for p in stays), tuple(x.zeros[p] for p in stays))


@rule(aten.unflatten.int)
def unflatten(call: Call, x: Value, dim: int, sizes: Any) -> Value:
    result = call.regroup(x, call.sizes)
    start = dim % len(x)
    call.resize("sizes", result.dims[start : start + len(sizes)])
    return result


@rule(aten.permute.default)
def permute(call: Call, x: Value, order: list[int]) -> Value:
    return Value(tuple(x.dims[i] for i in order), tuple(x.zeros[i] for i in order))


@rule(aten.movedim.int)
def movedim(call: Call, x: Value, source: int, destination: int) -> Value:
    order = [i for i in range(len(x)) if i != source % len(x)]
    order.insert(destination % len(x), source % len(x))
    return Value(tuple(x.dims[i] for i in order), tuple(x.zeros[i] for i in order))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(call: Call, x: Value, repeats: int, dim: int | None = None, *_: Any) -> Value:
    """Each index is repeated in place: Product(index, copy). This is how KV heads are often repeated."""
    if dim is None:
        for one in x.dims:
            call.freeze(one, "is flattened and repeated")
        return Value(tuple(call.opaque(size, "is repeated") for size in call.sizes), (False,) * len(call.sizes))
    dim %= len(x)
    copies = call.opaque(repeats, "counts copies")
    repeated = call.space.resolve(Product((x[dim], copies)))
    return Value((*x.dims[:dim], repeated, *x.dims[dim + 1 :]), x.zeros)


@rule(aten.transpose.int, aten.swapaxes.default)
def transpose(call: Call, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x)))
    order[a], order[b] = order[b], order[a]
    return Value(tuple(x.dims[i] for i in order), tuple(x.zeros[i] for i in order))


@rule(aten.t.default, aten.numpy_T.default, aten.mT.default)
def turn(call: Call, x: Value) -> Value:
    if len(x) < 2:
        return x
    order = [*range(len(x) - 2), len(x) - 1, len(x) - 2]
    return Value(tuple(x.dims[i] for i in order), tuple(x.zeros[i] for i in order))


@rule(aten.expand.default)
def expand(call: Call, x: Value, _size: Any, *_: Any) -> Value:
    new = len(call.sizes) - len(x)
    size = read_argument(call.node, "size")
    dims: list[Dim] = []
    zeros: list[bool] = []
    for position, wanted in enumerate(call.sizes):
        old = x[position - new] if position >= new else ONE
        if old.size == wanted:
            dims.append(old)
            zeros.append(x.zeros[position - new] if position >= new else False)
        else:
            # Copies: an index may go (GQA's repeated KV heads); all copies are equal.
            copies = call.space.leaf(wanted)
            if not isinstance(size[position], int):
                call.freeze(copies, "one copy for each example")
            dims.append(copies)
            zeros.append(False)
    call.resize("size", dims)
    return Value(tuple(dims), tuple(zeros))


@rule(aten.expand_as.default)
def expand_as(call: Call, x: Value, other: Value) -> Value:
    dims = call.broadcast([x, other])
    return Value(dims, (False,) * len(dims))


@rule(aten.select.int)
def select(call: Call, x: Value, dim: int, index: int) -> Value:
    dim %= len(x)
    call.freeze(x[dim], "one index is picked by number")
    rest = [i for i in range(len(x)) if i != dim]
    return Value(tuple(x.dims[i] for i in rest), tuple(x.zeros[i] for i in rest))


@rule(aten.unbind.int)
def unbind(call: Call, x: Value, dim: int = 0) -> list[Value]:
    dim %= len(x)
    call.freeze(x[dim], "is taken apart by number")
    rest = [i for i in range(len(x)) if i != dim]
    one = Value(tuple(x.dims[i] for i in rest), tuple(x.zeros[i] for i in rest))
    return [one] * x[dim].size


@rule(aten.flip.default, aten.roll.default)
def reorder(call: Call, x: Value, *arguments: Any) -> Value:
    dims = arguments[-1]
    for dim in dims or range(len(x)):
        call.freeze(x[dim], "is reordered")
    return Value(x.dims, x.zeros)


@rule(aten.repeat.default)
def repeat(call: Call, x: Value, repeats: list[Any]) -> Value:
    new = len(repeats) - len(x)
    dims: list[Dim] = []
    for position, wanted in enumerate(call.sizes):
        old = x[position - new] if position >= new else ONE
        if old.size == wanted:
            dims.append(old)
        else:
            call.freeze(old, "is repeated")
            dims.append(call.opaque(wanted, "is repeated"))
    return Value(tuple(dims), (False,) * len(dims))
