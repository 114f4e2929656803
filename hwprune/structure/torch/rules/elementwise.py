"""Element-wise operators: dims unify by broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hwprune.structure.dims import Dim
from hwprune.structure.scope import Scope, Value
from hwprune.structure.torch.rules.table import Call, rule

aten = torch.ops.aten


def _variants(*names: str) -> list[Any]:
    """Every overload of the named operators, in-place forms included."""
    overloads = []
    for name in names:
        for spelling in (name, name + "_"):
            packet = getattr(aten, spelling, None)
            if packet is not None:
                overloads += [getattr(packet, o) for o in packet.overloads() if o != "out" and not o.endswith("_out")]
    return overloads


ZERO_STAYS = """
relu relu6 leaky_relu gelu silu mish elu selu celu tanh hardswish abs neg sign square sqrt sin asin atan erf
expm1 log1p sinh tan asinh atanh floor ceil round trunc frac dropout feature_dropout
alpha_dropout softshrink hardshrink softsign positive
""".split()  # noqa: SIM905 - f(0) = 0; a list of quoted names would be three times as long
ZERO_MOVES = """
sigmoid exp exp2 cos cosh acos hardsigmoid softplus logical_not bitwise_not isnan isinf log_sigmoid erfc
""".split()  # noqa: SIM905 - f(0) != 0
UNBOUNDED = "log log2 log10 rsqrt reciprocal".split()  # noqa: SIM905 - f(0) is infinite
SAME = "clone contiguous alias detach lift_fresh_copy lift_fresh _to_copy to type_as pin_memory".split()  # noqa: SIM905


NONZERO_STAYS = "sqrt abs neg square positive tanh".split()  # noqa: SIM905 - f(x) = 0 for x = 0 alone


@rule(*_variants(*(name for name in ZERO_STAYS if name not in NONZERO_STAYS)))
def keeps_zero(call: Call, x: Value, *_: Any) -> Value:
    return Value(x.dims, x.zeros)


@rule(*_variants(*NONZERO_STAYS), *_variants(*SAME))
def keeps_zero_and_others(call: Call, x: Value, *_: Any) -> Value:
    return Value(x.dims, x.zeros, offset=x.offset)


@rule(*_variants(*ZERO_MOVES))
def moves_zero(call: Call, x: Value, *_: Any) -> Value:
    return Value(x.dims, (False,) * len(x))


@rule(*_variants(*UNBOUNDED))
def unbounded_at_zero(call: Scope, x: Value, *_: Any) -> Value:
    """The masked model has infinities, and NaN where they meet a zero; not where a constant was added before."""
    for position, dim in enumerate(x.dims):
        if not (x.offset and x.offset[position]):
            call.inexact(dim, "the function is infinite where a mask makes zero")
    return Value(x.dims, (False,) * len(x))


@rule(*_variants("pow"))
def power(call: Scope, *arguments: Any) -> Value:
    dims = call.broadcast(call.inputs)
    exponent = arguments[1] if len(arguments) > 1 else None
    base = arguments[0] if isinstance(arguments[0], Value) else None
    if base is not None and not (isinstance(exponent, (int, float)) and exponent >= 0):
        for position, (dim, zero) in enumerate(zip(base.dims, base.zeros, strict=True)):
            if zero and not (base.offset and base.offset[position]):
                call.inexact(dim, "the function is infinite where a mask makes zero")
    if base is not None and isinstance(exponent, (int, float)) and exponent > 0:
        return Value(dims, tuple(_zero_along(base, p) for p in range(-len(dims), 0)))
    return Value(dims, (False,) * len(dims))


@rule(*_variants("clamp", "clamp_min", "clamp_max", "threshold", "masked_fill", "fill", "nan_to_num"))
def may_move_zero(call: Call, x: Value, *_: Any) -> Value:
    dims = call.broadcast(call.inputs)
    return Value(dims, (False,) * len(dims))


@rule(*_variants("hardtanh"))
def hardtanh(call: Call, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    return Value(x.dims, x.zeros if low <= 0 <= high else (False,) * len(x))


def _zero_along(value: Value, position: int) -> bool:
    """Is ``value`` zero where the broadcast dim (counted from the right) is removed?"""
    return -position <= len(value) and value[position].size != 1 and value.zeros[position]


@rule(*_variants("mul", "multiply", "logical_and", "bitwise_and", "__and__"))
def product(call: Scope, *_: Any) -> Value:
    dims = call.broadcast(call.inputs)
    zeros = [any(_zero_along(v, p) for v in call.inputs) for p in range(-len(dims), 0)]
    return Value(dims, tuple(zeros))


@rule(*_variants("div", "divide", "floor_divide", "true_divide", "remainder", "fmod"))
def quotient(call: Scope, x: Any, *_: Any) -> Value:
    dims = call.broadcast(call.inputs)
    # x / 0 is no number in the masked model, but only a divisor that carries the dim can be 0 there.
    others = call.inputs[1:] if isinstance(x, Value) else call.inputs
    for position in range(-len(dims), 0):
        if any(_zero_along(value, position) for value in others):
            call.inexact(dims[position], "divides by what a mask makes zero")
    if not isinstance(x, Value):
        return Value(dims, (False,) * len(dims))
    zeros = [_zero_along(x, p) and not any(_zero_along(value, p) for value in others) for p in range(-len(dims), 0)]
    return Value(dims, tuple(zeros))


def _joined(call: Scope, activations: Sequence[Value]) -> list[int]:
    """Positions where a sum brings together what different layers made (and not, as in GELU, a tensor and a function of it)."""
    if len(activations) < 2 or len({len(v) for v in activations}) > 1:
        return []
    first, *others = activations
    resolve = call.space.resolve
    return [
        position
        for position in range(len(first))
        if any(
            resolve(first[position]) != resolve(other[position]) and first[position].size == other[position].size > 1
            for other in others
        )
    ]


@rule(*_variants("add", "sub", "subtract", "maximum", "minimum"))
def total(call: Scope, *arguments: Any) -> Value:
    plain = [v for v in call.inputs if len(v)]
    joined = _joined(call, [v for v in plain if v.parameter is None])
    dims = call.broadcast(call.inputs)
    scalar = len(plain) < 2
    zeros = [not scalar and all(_zero_along(v, p) for v in plain) for p in range(-len(dims), 0)]
    for position in joined:
        call.space.tag(dims[position], "summed")  # the residual stream is what passes through such sums
    numbers = [a for a in arguments[:2] if isinstance(a, (int, float)) and not isinstance(a, bool)]
    carrying = [v for v in plain if any(dim.size != 1 for dim in v.dims)]
    shifted = len(numbers) == 1 and numbers[0] != 0 and len(carrying) == 1 and len(carrying[0]) == len(dims)
    return Value(dims, tuple(zeros), offset=carrying[0].zeros if shifted else ())


@rule(
    *_variants(
        "rsub",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "where",
        "logical_or",
        "logical_xor",
        "bitwise_or",
        "bitwise_xor",
        "__or__",
        "__xor__",
        "isclose",
        "fmax",
        "fmin",
        "logaddexp",
        "rrelu",
        "lerp",
        "addcmul",
        "atan2",
        "hypot",
    )
)
def any_function(call: Scope, *_: Any) -> Value:
    dims = call.broadcast(call.inputs)
    return Value(dims, (False,) * len(dims))


@rule(*_variants("addcdiv"))
def sum_with_quotient(call: Scope, _first: Value, _numerator: Value, divisor: Value, *_: Any) -> Value:
    """first + value * numerator / divisor: no number where the divisor is zero, whatever else is."""
    dims = call.broadcast(call.inputs)
    for position in range(-len(dims), 0):
        if _zero_along(divisor, position):
            call.inexact(dims[position], "divides by what a mask makes zero")
    return Value(dims, (False,) * len(dims))


@rule(*_variants("xlogy"))
def product_with_log(call: Scope, first: Any, second: Any) -> Value:
    """first * log(second), and 0 where first is 0."""
    dims = call.broadcast(call.inputs)
    zeros = [isinstance(first, Value) and _zero_along(first, p) for p in range(-len(dims), 0)]
    for position, zero in zip(range(-len(dims), 0), zeros, strict=True):
        if isinstance(second, Value) and _zero_along(second, position) and not zero:
            call.inexact(dims[position], "the function is infinite where a mask makes zero")
    return Value(dims, tuple(zeros))


@rule(aten.prelu.default, aten._prelu_kernel.default)
def prelu(call: Call, x: Value, weight: Value) -> Value:
    if weight[-1].size != 1 and len(x) > 1:
        call.unify(x[1], weight[0])
    return Value(x.dims, x.zeros)


@rule(aten.glu.default)
def glu(call: Call, x: Value, dim: int) -> Value:
    half = x[dim].size // 2
    first, second = call.parts(x[dim], [half, half])
    call.unify(first, second)
    dims: list[Dim] = list(x.dims)
    dims[dim] = first
    return Value(tuple(dims), x.zeros)
