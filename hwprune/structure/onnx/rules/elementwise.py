"""Element-wise operators and quantisation: dims unify by broadcasting."""

from __future__ import annotations

from hwprune.structure.dims import Dim
from hwprune.structure.onnx.rules.table import OnnxCall, rule
from hwprune.structure.scope import Value
from hwprune.structure.torch.rules import elementwise as semantics


@rule(
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish", "Tanh", "Abs", "Neg", "Sign", "Sqrt", "Sin", "Asin",
    "Atan", "Sinh",
    "Asinh", "Atanh", "Tan", "Erf", "Floor", "Ceil", "Round", "HardSwish", "Softsign", "Identity", "Cast", "CastLike",
    "ThresholdedRelu", "com.microsoft::Gelu", "com.microsoft::FastGelu", "com.microsoft::QuickGelu",
)  # fmt: skip
def keeps_zero(call: OnnxCall) -> Value:
    x = call.tensor(0)
    if call.node.domain == "com.microsoft" and len(call.inputs) > 1:  # a bias is added first
        call.mention_all()
        dims = call.broadcast(call.inputs)
        return Value(dims, (False,) * len(dims))
    if call.node.op_type == "CastLike":
        call.mention_all()
    same = call.node.op_type in ("Identity", "Cast", "CastLike")
    offset = x.offset if same or call.node.op_type in ("Sqrt", "Abs", "Neg", "Tanh") else ()
    return Value(x.dims, x.zeros, x.parameter if same else None, offset)


@rule(
    "Sigmoid", "Exp", "Cos", "Cosh", "Acos", "Acosh", "HardSigmoid", "Softplus", "Not", "IsNaN", "IsInf", "BitwiseNot", "Clip",
)  # fmt: skip
def moves_zero(call: OnnxCall) -> Value:
    x = call.tensor(0)
    limits = [call.known[position] for position in range(1, len(call.node.input)) if call.node.input[position]]
    if call.node.op_type == "Clip" and call.opset >= 11 and len(limits) == 2 and all(v is not None for v in limits):
        low, high = (float(v) for v in limits if v is not None)
        return Value(x.dims, x.zeros if low <= 0 <= high else (False,) * len(x))
    return Value(x.dims, (False,) * len(x))


@rule("Log", "Reciprocal")
def unbounded(call: OnnxCall) -> Value:
    return _as_value(semantics.unbounded_at_zero(call, call.tensor(0)))


@rule("Pow")
def power(call: OnnxCall) -> Value:
    call.mention_all()
    exponent = call.known[1]
    number = float(exponent.reshape(-1)[0]) if exponent is not None and exponent.size == 1 else None
    return _as_value(semantics.power(call, call.tensor(0), number))


@rule("Dropout")
def dropout(call: OnnxCall) -> list[Value]:
    x = call.tensor(0)
    return [Value(x.dims, x.zeros), Value(x.dims, (False,) * len(x))][: len(call.outputs)]


@rule("Mul", "And", "BitwiseAnd")
def product(call: OnnxCall) -> Value:
    call.mention_all()
    return _as_value(semantics.product(call))


@rule("Div")
def quotient(call: OnnxCall) -> Value:
    call.mention_all()
    return _as_value(semantics.quotient(call, call.tensor(0)))


@rule("Add", "Sub", "Max", "Min", "Sum")
def total(call: OnnxCall) -> Value:
    call.mention_all()
    numbers = []
    if call.node.op_type in ("Add", "Sub"):  # not of Max, where a number may be the less
        numbers = [float(known.reshape(-1)[0]) for known in call.known[:2] if known is not None and known.size == 1]
    return _as_value(semantics.total(call, *numbers))


@rule(
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "Or", "Xor", "Mod", "Mean", "BitwiseOr",
    "BitwiseXor", "BitShift",
)  # fmt: skip
def any_function(call: OnnxCall) -> Value:
    call.mention_all()
    return _as_value(semantics.any_function(call))


@rule("PRelu")
def prelu(call: OnnxCall) -> Value:
    x, slope = call.tensor(0), call.tensor(1)
    call.broadcast([x, slope])
    return Value(x.dims, x.zeros)


@rule("QuantizeLinear", "DequantizeLinear")
def quantize(call: OnnxCall) -> Value:
    """One scale, or one for each index along ``axis``; zero stays zero where the zero points agree."""
    x, scale, point = call.tensor(0), call.tensor(1), call.optional(2)
    axis = call.options.get("axis", 1)
    for tensor in (scale, point):
        if tensor is not None and len(tensor) == 1 and tensor[0].size > 1:
            call.unify(x[axis], tensor[0])
        elif tensor is not None and len(tensor) > 1:
            raise ValueError("quantised in blocks")
    symmetric = point is None or (call.known[2] is not None and not call.known[2].any())
    if call.node.op_type == "QuantizeLinear":  # what was zero is the zero point now
        return Value(x.dims, x.zeros if symmetric else (False,) * len(x))
    name, zeros = call.quantised.get(call.node.input[0], ("", x.zeros))
    same = name and name == call.node.input[2] if len(call.node.input) > 2 else False
    return Value(x.dims, zeros if same else x.zeros if symmetric else (False,) * len(x))


def _as_value(result: Value | tuple[Dim, ...] | list[Value]) -> Value:
    assert isinstance(result, Value)
    return result
