"""ONNX operators with weights, pooling, normalisation and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from hwprune.onnx_files.operators.table import Node, Tensor, operator


@operator("Gemm")
def gemm(node: Node) -> Tensor:
    a, b, bias = node.tensor(0), node.tensor(1), node.optional(2)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    a = a.t() if node.get("transA", 0) else a
    if node.get("transB", 0) and alpha == 1.0 and beta == 1.0 and (bias is None or bias.ndim == 1):
        return F.linear(a, b, bias)
    b = b.t() if node.get("transB", 0) else b
    if bias is None:
        return alpha * (a @ b) if alpha != 1.0 else a @ b
    return torch.addmm(bias, a, b, alpha=alpha, beta=beta)


@operator("Einsum")
def einsum(node: Node) -> Tensor:
    return torch.einsum(node.options["equation"], *(node.tensor(i) for i in range(len(node.tensors))))


def _padded(node: Node, x: Tensor, kernel: Sequence[int], fill: float) -> tuple[Tensor, list[int]]:
    """(x padded where the padding is not the same on both sides, the padding that is left to do)."""
    spatial = len(kernel)
    strides, dilations = node.get("strides", [1] * spatial), node.get("dilations", [1] * spatial)
    auto = node.get("auto_pad", "NOTSET")
    pads = list(node.get("pads", [0] * 2 * spatial))
    if auto == "VALID":
        pads = [0] * 2 * spatial
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(spatial):
            size = int(x.shape[2 + i])
            total = max((-(-size // strides[i]) - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - size, 0)
            small, large = total // 2, total - total // 2
            pads[i], pads[i + spatial] = (small, large) if auto == "SAME_UPPER" else (large, small)
    if pads[:spatial] == pads[spatial:]:
        return x, pads[:spatial]
    amounts = [value for i in reversed(range(spatial)) for value in (pads[i], pads[i + spatial])]
    return F.pad(x, amounts, value=fill), [0] * spatial


@operator("Conv")
def conv(node: Node) -> Tensor:
    x, weight = node.tensor(0), node.tensor(1)
    spatial = weight.ndim - 2
    x, padding = _padded(node, x, weight.shape[2:], 0.0)
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    strides, dilations = node.get("strides", [1] * spatial), node.get("dilations", [1] * spatial)
    return function(x, weight, node.optional(2), strides, padding, dilations, node.get("group", 1))  # type: ignore[no-any-return]


@operator("ConvTranspose")
def conv_transpose(node: Node) -> Tensor:
    x, weight = node.tensor(0), node.tensor(1)
    spatial = weight.ndim - 2
    pads = node.get("pads", [0] * 2 * spatial)
    if node.get("auto_pad", "NOTSET") != "NOTSET" or pads[:spatial] != pads[spatial:] or "output_shape" in node.options:
        raise ValueError("ConvTranspose with auto_pad, output_shape or one-sided padding")
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    ones = [1] * spatial
    extra = node.get("output_padding", [0] * spatial)
    return function(  # type: ignore[no-any-return]
        x,
        weight,
        node.optional(2),
        node.get("strides", ones),
        pads[:spatial],
        extra,
        node.get("group", 1),
        node.get("dilations", ones),
    )


@operator("MaxPool")
def max_pool(node: Node) -> Tensor:
    kernel = node.options["kernel_shape"]
    x, padding = _padded(node, node.tensor(0), kernel, float("-inf"))
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    ones = [1] * len(kernel)
    ceil = bool(node.get("ceil_mode", 0))
    if node.outputs > 1:
        raise ValueError("MaxPool with indices")
    return function(x, kernel, node.get("strides", ones), padding, node.get("dilations", ones), ceil_mode=ceil)  # type: ignore[no-any-return]


@operator("AveragePool")
def average_pool(node: Node) -> Tensor:
    kernel = node.options["kernel_shape"]
    include = bool(node.get("count_include_pad", 0))
    x = node.tensor(0)
    padded, padding = _padded(node, x, kernel, 0.0)
    if (padded is not x and not include) or any(d != 1 for d in node.get("dilations", [1])):
        raise ValueError("AveragePool with one-sided padding that does not count, or with dilation")
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    strides = node.get("strides", [1] * len(kernel))
    return function(padded, kernel, strides, padding, ceil_mode=bool(node.get("ceil_mode", 0)), count_include_pad=include)  # type: ignore[no-any-return]


@operator("BatchNormalization")
def batch_norm(node: Node) -> Tensor:
    if node.get("training_mode", 0):
        raise ValueError("BatchNormalization in training mode")
    x, weight, bias, mean, variance = (node.tensor(i) for i in range(5))
    momentum = 1 - node.get("momentum", 0.9)  # ONNX weighs the old value, PyTorch the new one
    return F.batch_norm(x, mean, variance, weight, bias, node.training, momentum, node.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_norm(node: Node) -> Tensor:
    x = node.tensor(0)
    start = node.get("axis", -1) % x.ndim
    return F.layer_norm(x, x.shape[start:], node.tensor(1), node.optional(2), node.get("epsilon", 1e-5))


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(node: Node) -> Tensor:
    x = node.tensor(0)
    start = node.get("axis", -1) % x.ndim
    return F.rms_norm(x, list(x.shape[start:]), node.tensor(1), node.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(node: Node) -> Tensor:
    return F.instance_norm(node.tensor(0), weight=node.tensor(1), bias=node.tensor(2), eps=node.get("epsilon", 1e-5))


@operator("GroupNormalization")
def group_norm(node: Node) -> Tensor:
    return F.group_norm(node.tensor(0), node.options["num_groups"], node.tensor(1), node.tensor(2), node.get("epsilon", 1e-5))


@operator("LpNormalization")
def lp_normalise(node: Node) -> Tensor:
    x, axis = node.tensor(0), node.get("axis", -1)
    norm: Tensor = torch.linalg.vector_norm(x, node.get("p", 2), axis, keepdim=True)
    return x / norm


@operator("Softmax", "LogSoftmax")
def softmax(node: Node) -> Tensor:
    function = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    result: Tensor = function(node.tensor(0), node.get("axis", -1))
    return result


@operator("Resize")
def resize(node: Node) -> Tensor:
    """The forms that PyTorch's exporters write."""
    x = node.tensor(0)
    mode, place = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    sizes, scales = node.integers(3) if len(node.numbers) > 3 else None, node.integers(2)
    spatial = x.ndim - 2
    size = [int(s) for s in sizes[2:]] if sizes else None
    if size is None:
        assert scales is not None
        exact = [int(x.shape[2 + i]) * scales[2 + i] for i in range(spatial)]
        if any(value != int(value) for value in exact):
            raise ValueError("Resize by scales that give no whole sizes")
        size = [int(value) for value in exact]
    if mode == "nearest":
        if place == "asymmetric" and node.get("nearest_mode", "round_prefer_floor") == "floor":
            return F.interpolate(x, size, mode="nearest")
        prefers = node.get("nearest_mode", "round_prefer_floor") == "round_prefer_floor"
        if place == "half_pixel" and prefers and all(s % int(x.shape[2 + i]) == 0 for i, s in enumerate(size)):
            return F.interpolate(x, size, mode="nearest")  # whole factors: the same pixels
        raise ValueError(f"Resize nearest with {place} and {node.get('nearest_mode', 'round_prefer_floor')}")
    if place not in ("half_pixel", "pytorch_half_pixel", "align_corners") or node.get("antialias", 0):
        raise ValueError(f"Resize {mode} with {place}")
    name = {"linear": ("linear", "bilinear", "trilinear")[spatial - 1], "cubic": "bicubic"}[mode]
    return F.interpolate(x, size, mode=name, align_corners=place == "align_corners")


@operator("GridSample")
def grid_sample(node: Node) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    corners = bool(node.get("align_corners", 0))
    return F.grid_sample(node.tensor(0), node.tensor(1), mode, node.get("padding_mode", "zeros"), corners)
