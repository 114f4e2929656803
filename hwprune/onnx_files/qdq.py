"""Models quantised in QDQ form: their whole-number weights as floating-point ones, and back.

Inside hwprune a weight is the floating-point tensor that its whole numbers stand for, followed by QuantizeLinear and
DequantizeLinear with the file's own scales. So it is cut and scored like any other, on the grid that it is delivered on; in files
it is whole numbers again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from hwprune.structure.onnx.flatten import without_graph
from hwprune.structure.onnx.values import attributes

MARK = "hwprune_quantise_"
"""Names of the nodes that stand before weights begin so."""
_WEIGHTS = (TensorProto.INT8, TensorProto.UINT8)


def unfolded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with floating-point weights where whole-number ones (of 8 bits, one reader each) were dequantised."""
    stored = {item.name: item for item in model.graph.initializer}
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    weights: dict[str, TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        item = stored.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        known = item is not None and all(name in stored for name in node.input)
        if item is None or not known or item.data_type not in _WEIGHTS or len(item.dims) < 2 or readers[item.name] != 1:
            nodes.append(node)
            continue
        arrays = [numpy_helper.to_array(stored[name]) for name in node.input]
        axis = attributes(node).get("axis", 1)
        if arrays[1].ndim > 1:  # scales of blocks
            nodes.append(node)
            continue
        weights[item.name] = numpy_helper.from_array(dequantise(arrays[0], arrays[1], *arrays[2:], axis=axis), item.name)
        quantised = f"{item.name}_{MARK}"
        points = list(node.input[2:])
        if not points:
            points = [f"{item.name}_zero"]
            weights[points[0]] = numpy_helper.from_array(np.zeros(arrays[1].shape, arrays[0].dtype), points[0])
        again = onnx.NodeProto()
        again.CopyFrom(node)
        again.input[0] = quantised
        del again.input[2:]
        again.input.extend(points)
        nodes.append(
            helper.make_node("QuantizeLinear", [item.name, node.input[1], *points], [quantised], name=MARK + item.name, axis=axis)
        )
        nodes.append(again)
    if not weights:
        return model
    result = without_graph(model)
    result.functions.extend(model.functions)
    result.graph.CopyFrom(model.graph)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    kept = [item for item in model.graph.initializer if item.name not in weights]
    del result.graph.initializer[:]
    result.graph.initializer.extend([*kept, *weights.values()])
    return result


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with whole-number weights again, in place."""
    stored = {item.name: item for item in model.graph.initializer}
    nodes, gone = [], {}
    for node in model.graph.node:
        if not node.name.startswith(MARK) or not all(name in stored for name in node.input):
            nodes.append(node)
            continue
        array, scale, point = (numpy_helper.to_array(stored[name]) for name in node.input)
        whole = quantise(array, scale, point, axis=attributes(node).get("axis", 1))
        gone[node.output[0]] = node.input[0]
        stored[node.input[0]].CopyFrom(numpy_helper.from_array(whole, node.input[0]))
    if gone:
        for node in nodes:
            for position, name in enumerate(node.input):
                if name in gone:
                    node.input[position] = gone[name]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return model


def _along(value: NDArray[Any], rank: int, axis: int) -> NDArray[Any]:
    return (
        value.reshape([-1 if position == axis % rank else 1 for position in range(rank)]) if value.size > 1 else value.reshape(())
    )


def dequantise(whole: NDArray[Any], scale: NDArray[Any], point: NDArray[Any] | None = None, *, axis: int) -> NDArray[Any]:
    """Floating-point numbers of a tensor; scales and zero points are single or run along ``axis``."""
    values = whole.astype(scale.dtype)
    if point is not None:
        values = values - _along(point, whole.ndim, axis).astype(scale.dtype)
    return np.asarray(values * _along(scale, whole.ndim, axis), dtype=scale.dtype)


def quantise(array: NDArray[Any], scale: NDArray[Any], point: NDArray[Any], *, axis: int) -> NDArray[Any]:
    """The nearest whole numbers, ties to even, within their type's range."""
    limits = np.iinfo(point.dtype)
    steps = np.rint(array / _along(scale, array.ndim, axis)) + _along(point, array.ndim, axis).astype(array.dtype)
    return np.asarray(np.clip(steps, limits.min, limits.max), dtype=point.dtype)


@torch.library.custom_op("hwprune::fake_quantize", mutates_args=())
def fake_quantize(x: torch.Tensor, scale: torch.Tensor, point: torch.Tensor, low: int, high: int, axis: int) -> torch.Tensor:
    """What QuantizeLinear and DequantizeLinear make of a tensor; gradients pass where the range is not left."""
    size, offset = _placed(scale, x, axis), _placed(point, x, axis).to(x.dtype)
    return ((torch.round(x / size) + offset).clamp(low, high) - offset) * size


@fake_quantize.register_fake
def _(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x)


def _placed(value: torch.Tensor, x: torch.Tensor, axis: int) -> torch.Tensor:
    """A single number, or one along ``axis``, shaped to broadcast."""
    return value.reshape(()) if value.numel() == 1 else value.reshape([-1 if p == axis % x.ndim else 1 for p in range(x.ndim)])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG001 - PyTorch calls it by names
    x, scale, point, low, high, axis = inputs
    size, offset = _placed(scale, x, axis), _placed(point, x, axis).to(x.dtype)
    steps = x / size + offset
    ctx.save_for_backward((steps >= low - 0.5) & (steps <= high + 0.5))


def _pass_on(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    (inside,) = ctx.saved_tensors
    return gradient * inside, None, None, None, None, None


fake_quantize.register_autograd(_pass_on, setup_context=_remember)


def pairs(nodes: Sequence[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
    """Result of a DequantizeLinear -> the QuantizeLinear before it that has the same scale and zero point."""
    made = {node.output[0]: node for node in nodes if node.op_type == "QuantizeLinear" and len(node.input) == 3}
    found = {}
    for node in nodes:
        before = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        same_axis = before is not None and attributes(before).get("axis", 1) == attributes(node).get("axis", 1)
        if before is not None and same_axis and list(node.input[1:]) == list(before.input[1:]):
            found[node.output[0]] = before
    return found
