"""ONNX operators that write into a tensor by number, and others that need few lines."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hwprune.onnx_files.operators.table import Node, Tensor, operator

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", "Scatter")
def scatter_elements(node: Node) -> Tensor:
    x, index, updates = node.tensor(0), node.tensor(1), node.tensor(2)
    axis, how = node.get("axis", 0), node.get("reduction", "none")
    index = torch.where(index < 0, index + x.shape[axis], index).long()
    if how == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[how])


@operator("ScatterND")
def scatter_nd(node: Node) -> Tensor:
    """``x[index[..., 0], index[..., 1], ...] = updates``."""
    x, index, updates, how = node.tensor(0), node.tensor(1).long(), node.tensor(2), node.get("reduction", "none")
    if how not in ("none", "add"):
        raise ValueError(f"ScatterND that reduces by {how}")
    places = tuple(index[..., number] for number in range(index.shape[-1]))
    places = tuple(torch.where(place < 0, place + x.shape[number], place) for number, place in enumerate(places))
    return x.index_put(places, updates, accumulate=how == "add")


@operator("OneHot")
def one_hot(node: Node) -> Tensor:
    depth, values = node.integers(1), node.tensor(2)
    if depth is None:
        raise ValueError("OneHot of a depth that is computed at run time")
    index, rank = node.tensor(0).long(), node.tensor(0).ndim
    chosen = torch.where(index < 0, index + depth[0], index).unsqueeze(-1) == torch.arange(int(depth[0]), device=index.device)
    result = torch.where(chosen, values[1], values[0])
    axis = node.get("axis", -1)
    return result if axis in (-1, rank) else result.movedim(-1, axis)


@operator("LRN")
def local_response(node: Node) -> Tensor:
    x, size = node.tensor(0), node.options["size"]
    squares = F.pad(x.square().unsqueeze(1), (0, 0) * (x.ndim - 2) + ((size - 1) // 2, size // 2))
    mean = F.avg_pool3d(squares.flatten(3).unsqueeze(-1), (size, 1, 1), 1).reshape(x.shape)
    scaled: Tensor = x / (node.get("bias", 1.0) + node.get("alpha", 1e-4) * mean).pow(node.get("beta", 0.75))
    return scaled


@operator("Shrink")
def shrink(node: Node) -> Tensor:
    x, limit, bias = node.tensor(0), node.get("lambd", 0.5), node.get("bias", 0.0)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


@operator("ThresholdedRelu")
def thresholded_relu(node: Node) -> Tensor:
    x = node.tensor(0)
    return torch.where(x > node.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("Hardmax")
def hardmax(node: Node) -> Tensor:
    x, axis = node.tensor(0), node.get("axis", -1)
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


@operator("ReduceLogSum")
def reduce_log_sum(node: Node) -> Tensor:
    axes = node.integers(1, "axes")
    x = node.tensor(0)
    return x.sum(list(axes) if axes else list(range(x.ndim)), keepdim=bool(node.get("keepdims", 1))).log()


@operator("EyeLike")
def eye_like(node: Node) -> Tensor:
    x = node.tensor(0)
    if node.get("k", 0) or "dtype" in node.options:
        raise ValueError("EyeLike beside the diagonal, or of another type")
    return torch.eye(x.shape[0], x.shape[1], dtype=x.dtype, device=x.device)
