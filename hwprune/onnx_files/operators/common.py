"""The computation of each ONNX operator, with PyTorch. One small function an operator, ``(call) -> tensor or tuple``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from hwprune.onnx_files.operators.table import Node, Tensor, operator, torch_dtype

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
