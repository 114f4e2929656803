"""Places where a model can be divided in two, and the two halves as ONNX models: what early exits are made of.

A place is one where a single tensor that weights have made holds all that the rest reads: a border between blocks. Nothing is
known of names or architectures; what else crosses (an attention mask) was made of inputs alone, and is handed over too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.utils import Extractor

Array = np.ndarray[Any, Any]
_WEIGHTED = ("Conv", "MatMul", "Gemm")
MOST_OTHERS = 3
"""Tensors that may cross beside the main one."""


@dataclass(frozen=True, slots=True)
class ExitPoint:
    """A place to divide a model.

    Attributes:
        tensor: name of the one that weights have made.
        others: names of tensors that cross beside it.
        share: of the multiply-accumulates that are done before it.
        shape: of the tensor for one example.
        other_shapes: of the others.
    """

    tensor: str
    others: tuple[str, ...]
    share: float
    shape: tuple[int, ...]
    other_shapes: tuple[tuple[int, ...], ...] = ()


def find(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> list[ExitPoint]:
    """All places, in the model's order; the last of several that follow one another without any product between them.

    Args:
        shapes: input name -> sizes, of one example.
    """
    graph = model.graph
    sizes, of_two = _sizes(model, shapes), _sizes(model, {name: (2, *shape[1:]) for name, shape in shapes.items()})
    fixed = any(
        item.type.tensor_type.shape.dim[0].HasField("dim_value") for item in graph.input if item.type.tensor_type.shape.dim
    )
    constant = {item.name for item in graph.initializer}
    weighted: set[str] = set()
    for node in graph.node:
        if all(name in constant or not name for name in node.input):
            constant.update(node.output)
        elif any(name in weighted for name in node.input) or (
            node.op_type in (*_WEIGHTED, "Gather")
            and any(name in constant and len(sizes.get(name, ())) > 1 for name in node.input)
        ):
            weighted.update(node.output)
    readers = {name: place for place, node in enumerate(graph.node) for name in node.input}
    readers |= {item.name: len(graph.node) for item in graph.output}
    work = [_products(node, sizes) for node in graph.node]
    whole, done = max(sum(work), 1), 0
    live: set[str] = set()
    found: list[ExitPoint] = []
    for place, node in enumerate(graph.node):
        done += work[place]
        live = {name for name in (*live, *node.output) if name not in constant and readers.get(name, -1) > place}
        main = sorted(live & weighted)
        others = tuple(sorted(live - weighted))
        if len(main) != 1 or len(others) > MOST_OTHERS or not all(len(sizes.get(name, ())) for name in (*main, *others)):
            continue
        shape = sizes[main[0]]
        crossing = (*main, *others)
        by_example = all(sizes[name][0] == 1 and (fixed or of_two.get(name, (0,))[0] == 2) for name in crossing)
        if not by_example or not 2 <= len(shape) <= 4:
            continue  # rows of examples that go on are taken of each
        point = ExitPoint(main[0], others, done / whole, shape, tuple(sizes[name] for name in others))
        if found and found[-1].share == point.share:
            found.pop()
        found.append(point)
    return [point for point in found if 0 < point.share < 1]


def proposed(points: Sequence[ExitPoint], wanted: Sequence[float]) -> list[ExitPoint]:
    """Those nearest to shares of the work, each once, in the model's order."""
    chosen = {min(range(len(points)), key=lambda i: abs(points[i].share - share)) for share in wanted} if points else set()
    return [points[i] for i in sorted(chosen)]


def features(model: onnx.ModelProto, point: ExitPoint) -> onnx.ModelProto:
    """(N, features) of what an exit's head reads: means over positions, of tokens beside the first one."""
    half = _part(model, [item.name for item in model.graph.input], [point.tensor])
    nodes, name = _pooled(point, _opset(model))
    half.graph.node.extend(nodes)
    del half.graph.output[:]
    half.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]))
    return half


def halves(
    model: onnx.ModelProto, point: ExitPoint, weight: Array, bias: Array, end: str | None = None
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The model until the exit, with its head, and the rest.

    Args:
        weight, bias: of the head, (classes, features) and (classes,).
        end: ``Softmax`` or ``Sigmoid``, where the model's answers are probabilities.

    Returns:
        the first gives the model's output under its name, and then all that crosses; the second takes that, and then the inputs
        that it reads itself.
    """
    crossing = [point.tensor, *point.others]
    inputs = [item.name for item in model.graph.input]
    first = _part(model, inputs, crossing)
    answer = model.graph.output[0]
    nodes, pooled = _pooled(point, _opset(model))
    logits = "exit/logits" if end else answer.name
    nodes.append(helper.make_node("Gemm", [pooled, "exit/weight", "exit/bias"], [logits], name="exit/head", transB=1))
    if end:
        nodes.append(helper.make_node(end, [logits], [answer.name], name="exit/end"))
    first.graph.node.extend(nodes)
    for name, array in (("weight", weight), ("bias", bias)):
        first.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), f"exit/{name}"))
    first.graph.output.insert(0, answer)
    read = {name for node in model.graph.node for name in node.input}
    second = _part(model, [*crossing, *(name for name in inputs if name in read)], [answer.name])
    used = {name for node in second.graph.node for name in node.input}
    for item in [item for item in second.graph.input if item.name not in used and item.name not in crossing]:
        second.graph.input.remove(item)
    return first, second


def without_crossing(first: onnx.ModelProto) -> onnx.ModelProto:
    """A first half that gives its answer alone."""
    made = onnx.ModelProto()
    made.CopyFrom(first)
    del made.graph.output[1:]
    return made


def _part(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """What lies between tensors; those whose types are not stored are floats of any size."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    known = {item.name for item in (*whole.graph.value_info, *whole.graph.input, *whole.graph.output)}
    if lacking := [name for name in (*inputs, *outputs) if name not in known]:
        inferred = {item.name: item for item in shape_inference.infer_shapes(whole).graph.value_info}
        whole.graph.value_info.extend(
            inferred.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in lacking
        )
    made: onnx.ModelProto = Extractor(whole).extract_model(list(inputs), list(outputs))
    del made.graph.value_info[:]
    return made


def _pooled(point: ExitPoint, opset: int) -> tuple[list[onnx.NodeProto], str]:
    """Nodes that make (N, features) of an exit's tensor, and the name of the result."""
    x, rank = point.tensor, len(point.shape)
    if rank == 2:
        return [], x
    nodes: list[onnx.NodeProto] = []

    def ints(name: str, values: Sequence[int]) -> str:
        tensor = numpy_helper.from_array(np.asarray(values, np.int64))
        nodes.append(helper.make_node("Constant", [], [f"exit/{name}"], value=tensor))
        return f"exit/{name}"

    axes = [2, 3] if rank == 4 else [1]
    if opset >= 18:
        nodes.append(helper.make_node("ReduceMean", [x, ints("axes", axes)], ["exit/mean"], keepdims=0))
    else:
        nodes.append(helper.make_node("ReduceMean", [x], ["exit/mean"], axes=axes, keepdims=0))
    if rank == 4:
        return nodes, "exit/mean"
    nodes.append(helper.make_node("Gather", [x, ints("place", [0])], ["exit/first"], axis=1))
    nodes.append(helper.make_node("Squeeze", ["exit/first", ints("one", [1])], ["exit/token"]))
    nodes.append(helper.make_node("Concat", ["exit/mean", "exit/token"], ["exit/features"], axis=1))
    return nodes, "exit/features"


def _opset(model: onnx.ModelProto) -> int:
    return next(int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx"))


def _sizes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Sizes of tensors for one example, as far as ONNX's inference finds them; scalars are ()."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for item in fixed.graph.input:
        if item.name in shapes:
            dims = item.type.tensor_type.shape.dim
            for dim, size in zip(dims, shapes[item.name], strict=False):
                dim.dim_value = int(size)
    for item in fixed.graph.output:
        item.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    inferred = shape_inference.infer_shapes(fixed, data_prop=True)
    found = {item.name: tuple(item.dims) for item in model.graph.initializer}
    for item in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in item.type.tensor_type.shape.dim]
        if item.type.tensor_type.HasField("shape") and all(dim is not None for dim in dims):
            found[item.name] = tuple(int(dim or 0) for dim in dims)
    return found


def _products(node: onnx.NodeProto, sizes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of a node; 0 where its sizes are not known."""
    if node.op_type not in _WEIGHTED or node.output[0] not in sizes:
        return 0
    made = math.prod(sizes[node.output[0]])
    if node.op_type == "Conv":
        return made * math.prod(sizes.get(node.input[1], (0,))[1:])
    first = sizes.get(node.input[0], ())
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return made * (first[0] if transposed else first[-1]) if first else 0
