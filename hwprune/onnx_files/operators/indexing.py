"""ONNX operators that select, reduce and quantise."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from hwprune.onnx_files.operators.table import Node, Tensor, operator


@operator(
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
)
def reduce(node: Node) -> Tensor:
    x = node.tensor(0)
    axes = node.integers(1, "axes")
    if not axes and node.get("noop_with_empty_axes", 0):
        return x
    dims = list(axes) if axes else list(range(x.ndim))
    keep = bool(node.get("keepdims", 1))
    match node.kind:
        case "ReduceSum":
            return x.sum(dims, keepdim=keep)
        case "ReduceMean":
            return x.mean(dims, keepdim=keep)
        case "ReduceMax":
            return x.amax(dims, keepdim=keep)
        case "ReduceMin":
            return x.amin(dims, keepdim=keep)
        case "ReduceL1":
            return x.abs().sum(dims, keepdim=keep)
        case "ReduceL2":
            norm: Tensor = torch.linalg.vector_norm(x, 2, dims, keepdim=keep)
            return norm
        case "ReduceSumSquare":
            return x.square().sum(dims, keepdim=keep)
        case "ReduceLogSumExp":
            return torch.logsumexp(x, dims, keepdim=keep)
    for dim in sorted((d % x.ndim for d in dims), reverse=True):
        x = x.prod(dim, keepdim=keep)
    return x


@operator("Gather")
def gather(node: Node) -> Tensor:
    x, axis = node.tensor(0), node.get("axis", 0)
    which = node.numbers[1]
    index = node.tensor(1)
    if which is not None and index.ndim == 0:
        return x.select(axis, int(which[0]))
    if axis == 0 and x.ndim == 2 and which is None and isinstance(x, torch.nn.Parameter):
        return F.embedding(index, x)
    if which is None:  # numbers may count from the end
        index = torch.where(index < 0, index + x.shape[axis], index)
    places: list[Any] = [slice(None)] * x.ndim
    places[axis] = index.long()
    return x[tuple(places)]


@operator("GatherElements")
def gather_elements(node: Node) -> Tensor:
    x, axis, index = node.tensor(0), node.get("axis", 0), node.tensor(1)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index).long())


@operator("GatherND")
def gather_nd(node: Node) -> Tensor:
    x, index, batch = node.tensor(0), node.tensor(1).long(), node.get("batch_dims", 0)
    if batch == 1 and index.shape[-1] == 1 and index.ndim == 3:  # rows of each example: converters know no other form
        rows = index.reshape(*index.shape[:2], *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        return torch.gather(x, 1, torch.where(rows < 0, rows + x.shape[1], rows))
    shape = index.shape[:-1]
    own = [
        torch.arange(x.shape[dim], device=x.device).reshape([-1 if place == dim else 1 for place in range(len(shape))])
        for dim in range(batch)
    ]
    return x[(*own, *index.unbind(-1))]


@operator("ArgMax", "ArgMin")
def argument(node: Node) -> Tensor:
    function = torch.argmax if node.kind == "ArgMax" else torch.argmin
    return function(node.tensor(0), node.get("axis", 0), bool(node.get("keepdims", 1)))


@operator("CumSum")
def cumsum(node: Node) -> Tensor:
    (axis,) = node.integers(1) or [0]
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise ValueError("CumSum that is exclusive or reversed")
    return torch.cumsum(node.tensor(0), axis)


@operator("Trilu")
def trilu(node: Node) -> Tensor:
    (k,) = node.integers(1) or [0]
    return (torch.triu if node.get("upper", 1) else torch.tril)(node.tensor(0), k)


@operator("TopK")
def top_k(node: Node) -> Any:
    (k,) = node.integers(1) or [1]
    return tuple(torch.topk(node.tensor(0), k, node.get("axis", -1), bool(node.get("largest", 1)), bool(node.get("sorted", 1))))


@operator("QuantizeLinear")
def quantize(node: Node) -> Tensor:
    x, scale, point = node.tensor(0), _along(node, 1), _along(node, 2) if node.optional(2) is not None else None
    kind = node.tensor(2).dtype if point is not None else torch.uint8
    limits = torch.iinfo(kind)
    shifted = torch.round(x / scale) + (0 if point is None else point.to(x.dtype))
    return torch.clamp(shifted, limits.min, limits.max).to(kind)


@operator("DequantizeLinear")
def dequantize(node: Node) -> Tensor:
    x, scale = node.tensor(0), _along(node, 1)
    numbers = node.numbers[2] if len(node.numbers) > 2 else None
    nothing = node.optional(2) is None or (numbers is not None and not any(numbers))
    values = x.to(scale.dtype)
    return (values if nothing else values - _along(node, 2).to(scale.dtype)) * scale


def _along(node: Node, position: int) -> Tensor:
    """Scale or zero point, shaped to broadcast along its axis."""
    value, x = node.tensor(position), node.tensor(0)
    if value.ndim == 0 or value.numel() == 1:
        return value.reshape(())
    shape = [1] * x.ndim
    shape[node.get("axis", 1)] = -1
    return value.reshape(shape)
