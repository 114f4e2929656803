"""What each ONNX operator computes, with PyTorch. One small function an operator, ``(call) -> tensor or tuple``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch.nn import functional as F

Tensor = torch.Tensor


@dataclass(slots=True)
class Node:
    """One node while it is computed.

    Attributes:
        tensors: inputs as tensors; None for one that is left out or that is given as numbers only.
        numbers: inputs known as whole numbers (or one float); an entry may be a size known only at run time.
        outputs: how many outputs are read.
    """

    kind: str
    options: Mapping[str, Any]
    opset: int
    tensors: Sequence[Tensor | None]
    numbers: Sequence[list[Any] | None]
    outputs: int
    training: bool

    def tensor(self, position: int) -> Tensor:
        value = self.optional(position)
        if value is None:
            raise ValueError(f"{self.kind} needs input {position}")
        return value

    def optional(self, position: int) -> Tensor | None:
        return self.tensors[position] if position < len(self.tensors) else None

    def integers(self, position: int, attribute: str | None = None) -> list[Any] | None:
        if position < len(self.numbers) and self.numbers[position] is not None:
            return self.numbers[position]
        if attribute is not None and attribute in self.options:
            found = self.options[attribute]
            return [found] if isinstance(found, int) else list(found)
        if self.optional(position) is not None:
            raise ValueError(f"{self.kind}: input {position} is computed at run time")
        return None

    def get(self, name: str, default: Any) -> Any:
        return self.options.get(name, default)


Operator = Callable[[Node], Any]
OPERATORS: dict[str, Operator] = {}


def operator(*kinds: str) -> Callable[[Operator], Operator]:
    """Enter a function into the table."""

    def enter(function: Operator) -> Operator:
        for kind in kinds:
            if kind in OPERATORS:
                raise ValueError(f"two functions for {kind}")
            OPERATORS[kind] = function
        return function

    return enter


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": F.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Abs": torch.abs, "Neg": torch.neg, "Sign": torch.sign,
    "Sqrt": torch.sqrt, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos,
    "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh,
    "Erf": torch.erf, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Exp": torch.exp, "Log": torch.log,
    "Reciprocal": torch.reciprocal, "Not": torch.logical_not, "IsNaN": torch.isnan, "IsInf": torch.isinf,
    "HardSwish": F.hardswish,
    "Mish": F.mish, "Softplus": F.softplus, "Softsign": F.softsign, "Identity": lambda x: x,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
}  # fmt: skip
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow, "Equal": torch.eq, "Less": torch.lt,
    "LessOrEqual": torch.le, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "MatMul": torch.matmul, "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
}  # fmt: skip


@operator(*_UNARY)
def unary(node: Node) -> Tensor:
    return _UNARY[node.kind](node.tensor(0))


@operator(*_BINARY)
def binary(node: Node) -> Tensor:
    return _BINARY[node.kind](node.tensor(0), node.tensor(1))


@operator("Div")
def div(node: Node) -> Tensor:
    a, b = node.tensor(0), node.tensor(1)
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


@operator("Mod")
def mod(node: Node) -> Tensor:
    return (torch.fmod if node.get("fmod", 0) else torch.remainder)(node.tensor(0), node.tensor(1))


@operator("Max", "Min", "Sum", "Mean")
def variadic(node: Node) -> Tensor:
    join = {"Max": torch.maximum, "Min": torch.minimum}.get(node.kind, torch.add)
    result = node.tensor(0)
    for position in range(1, len(node.tensors)):
        result = join(result, node.tensor(position))
    return result / len(node.tensors) if node.kind == "Mean" else result


@operator("LeakyRelu")
def leaky_relu(node: Node) -> Tensor:
    return F.leaky_relu(node.tensor(0), node.get("alpha", 0.01))


@operator("Elu", "Celu")
def elu(node: Node) -> Tensor:
    return (F.elu if node.kind == "Elu" else F.celu)(node.tensor(0), node.get("alpha", 1.0))


@operator("Selu")
def selu(node: Node) -> Tensor:
    if not {"alpha", "gamma"}.isdisjoint(node.options):
        x = node.tensor(0)
        result: Tensor = node.get("gamma", 1.0507) * torch.where(x > 0, x, node.get("alpha", 1.67326) * torch.expm1(x))
        return result
    return F.selu(node.tensor(0))


@operator("Gelu")
def gelu(node: Node) -> Tensor:
    return F.gelu(node.tensor(0), approximate=node.get("approximate", "none"))


@operator("Swish")
def swish(node: Node) -> Tensor:
    x = node.tensor(0)
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


@operator("HardSigmoid")
def hard_sigmoid(node: Node) -> Tensor:
    return torch.clamp(node.tensor(0) * node.get("alpha", 0.2) + node.get("beta", 0.5), 0, 1)


@operator("Clip")
def clip(node: Node) -> Tensor:
    low, high = node.optional(1), node.optional(2)
    x = node.tensor(0)
    low_n, high_n = (node.numbers[p][0] if p < len(node.numbers) and node.numbers[p] else None for p in (1, 2))  # type: ignore[index]
    if (low is None or low_n is not None) and (high is None or high_n is not None):
        return torch.clamp(x, low_n, high_n) if low_n is not None or high_n is not None else x
    return torch.clamp(x, low, high)


@operator("Where")
def where(node: Node) -> Tensor:
    return torch.where(node.tensor(0), node.tensor(1), node.tensor(2))


@operator("Cast")
def cast(node: Node) -> Tensor:
    return node.tensor(0).to(torch_dtype(node.options["to"]))


@operator("CastLike")
def cast_like(node: Node) -> Tensor:
    return node.tensor(0).to(node.tensor(1).dtype)


@operator("Dropout")
def dropout(node: Node) -> Any:
    x = node.tensor(0)
    ratio = node.numbers[1][0] if len(node.numbers) > 1 and node.numbers[1] else 0.5
    result = F.dropout(x, float(ratio), node.training)
    return (result, torch.ones_like(x, dtype=torch.bool)) if node.outputs > 1 else result


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
    if node.get("batch_dims", 0):
        raise ValueError("GatherND with batch dims")
    return node.tensor(0)[tuple(node.tensor(1).long().unbind(-1))]


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


@operator("QuantizeLinear")
def quantize(node: Node) -> Tensor:
    x, scale, point = node.tensor(0), _along(node, 1), _along(node, 2) if node.optional(2) is not None else None
    kind = node.tensor(2).dtype if point is not None else torch.uint8
    limits = torch.iinfo(kind)
    shifted = torch.round(x / scale) + (0 if point is None else point.to(x.dtype))
    return torch.clamp(shifted, limits.min, limits.max).to(kind)


@operator("DequantizeLinear")
def dequantize(node: Node) -> Tensor:
    x, scale, point = node.tensor(0), _along(node, 1), _along(node, 2) if node.optional(2) is not None else None
    values = x.to(scale.dtype)
    return (values if point is None else values - point.to(scale.dtype)) * scale


def _along(node: Node, position: int) -> Tensor:
    """Scale or zero point, shaped to broadcast along its axis."""
    value, x = node.tensor(position), node.tensor(0)
    if value.ndim == 0 or value.numel() == 1:
        return value.reshape(())
    shape = [1] * x.ndim
    shape[node.get("axis", 1)] = -1
    return value.reshape(shape)


@operator("GridSample")
def grid_sample(node: Node) -> Tensor:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(node.get("mode", "linear"), node.get("mode", "linear"))
    corners = bool(node.get("align_corners", 0))
    return F.grid_sample(node.tensor(0), node.tensor(1), mode, node.get("padding_mode", "zeros"), corners)


def torch_dtype(number: int) -> torch.dtype:
    """PyTorch's dtype of an ONNX type number. Raises ValueError for one it doesn't have."""
    types: dict[int, torch.dtype] = {
        onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64, onnx.TensorProto.FLOAT16: torch.float16,
        onnx.TensorProto.BFLOAT16: torch.bfloat16, onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.INT32: torch.int32,
        onnx.TensorProto.INT16: torch.int16, onnx.TensorProto.INT8: torch.int8, onnx.TensorProto.UINT8: torch.uint8,
        onnx.TensorProto.BOOL: torch.bool,
    }  # fmt: skip
    if number not in types:
        raise ValueError(f"PyTorch has no type {onnx.TensorProto.DataType.Name(number)}")
    return types[number]
