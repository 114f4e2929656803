"""ONNX operators that change shapes only."""

from __future__ import annotations

from typing import Any

import onnx
import torch
from torch.nn import functional as F

from hwprune.onnx_files.operators.table import Node, Tensor, operator


@operator("Reshape")
def reshape(node: Node) -> Tensor:
    x = node.tensor(0)
    shape = node.integers(1, "shape") or []
    if not node.get("allowzero", 0):
        shape = [x.shape[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


@operator("Flatten")
def flatten(node: Node) -> Tensor:
    x, axis = node.tensor(0), node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 1 and x.ndim > 1:
        return x.flatten(1)
    return x.flatten(axis).flatten(0, axis - 1) if axis > 0 else x.reshape(1, -1)


@operator("Transpose")
def transpose(node: Node) -> Tensor:
    x = node.tensor(0)
    return x.permute(node.get("perm", None) or list(reversed(range(x.ndim))))


@operator("Squeeze")
def squeeze(node: Node) -> Tensor:
    axes = node.integers(1, "axes")
    return node.tensor(0).squeeze(tuple(axes)) if axes else node.tensor(0).squeeze()


@operator("Unsqueeze")
def unsqueeze(node: Node) -> Tensor:
    x = node.tensor(0)
    axes = node.integers(1, "axes") or []
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Expand")
def expand(node: Node) -> Tensor:
    x = node.tensor(0)
    shape = node.integers(1) or []
    lead = len(shape) - x.ndim
    if lead < 0:
        shape, lead = [1] * -lead + list(shape), 0
    if node.numbers[0] is not None and x.numel() == 1:  # a fill: as such it is known to be zero, or not
        return torch.full(list(shape), node.numbers[0][0], dtype=x.dtype, device=x.device)
    sizes = [-1 if position >= lead and isinstance(size, int) and size == 1 else size for position, size in enumerate(shape)]
    return x.expand(sizes)


@operator("Concat")
def concat(node: Node) -> Tensor:
    return torch.cat([node.tensor(i) for i in range(len(node.tensors))], node.options["axis"])


@operator("Split")
def split(node: Node) -> Any:
    x, axis = node.tensor(0), node.get("axis", 0)
    sizes = node.integers(1, "split")
    if sizes is None:
        count = node.get("num_outputs", node.outputs)
        sizes = [-(-int(x.shape[axis]) // count)] * count
        sizes[-1] = int(x.shape[axis]) - sum(sizes[:-1])
    return tuple(torch.split(x, sizes, axis))


@operator("Slice")
def slice_(node: Node) -> Tensor:
    x = node.tensor(0)
    starts, ends = node.integers(1, "starts") or [], node.integers(2, "ends") or []
    axes = node.integers(3, "axes") or list(range(len(starts)))
    steps = node.integers(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index: list[Any] = [slice(None)] * x.ndim
        if step < 0:
            size = int(x.shape[axis])
            places = list(range(size))[slice(start, None if end < -size else end, step)]
            x = x.index_select(axis, torch.tensor(places))
            continue
        index[axis] = slice(start, None if isinstance(end, int) and end >= 2**31 - 1 else end, step)
        x = x[tuple(index)]
    return x


@operator("Pad")
def pad(node: Node) -> Tensor:
    x = node.tensor(0)
    amounts = node.integers(1, "pads") or []
    axes = node.integers(3) or list(range(x.ndim))
    left, right = [0] * x.ndim, [0] * x.ndim
    for entry, axis in enumerate(axes):
        left[axis], right[axis] = amounts[entry], amounts[entry + len(axes)]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[node.get("mode", "constant")]
    fill = node.numbers[2][0] if len(node.numbers) > 2 and node.numbers[2] else node.get("value", 0.0)
    used = [axis for axis in range(x.ndim) if left[axis] or right[axis]]
    if not used:
        return x
    first = min(used) if mode == "constant" else 2
    flat = [value for axis in reversed(range(first, x.ndim)) for value in (left[axis], right[axis])]
    return F.pad(x, flat, mode, fill) if mode == "constant" else F.pad(x, flat, mode)


@operator("Tile")
def tile(node: Node) -> Tensor:
    return node.tensor(0).repeat(node.integers(1) or [])


@operator("ConstantOfShape")
def constant_of_shape(node: Node) -> Tensor:
    value = (
        torch.from_numpy(onnx.numpy_helper.to_array(node.options["value"]).copy()) if "value" in node.options else torch.zeros(1)
    )
    return torch.full(node.integers(0) or [], value.item(), dtype=value.dtype)


@operator("Range")
def range_(node: Node) -> Tensor:
    start, limit, step = ((node.integers(p) or [0])[0] for p in range(3))
    return torch.arange(start, limit, step)


@operator("DepthToSpace")
def depth_to_space(node: Node) -> Tensor:
    x, b = node.tensor(0), node.options["blocksize"]
    if node.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    n, c, h, w = x.shape
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(node: Node) -> Tensor:
    x, b = node.tensor(0), node.options["blocksize"]
    n, c, h, w = x.shape
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)
