"""Matrix products and convolutions."""

from __future__ import annotations

from hwprune.structure.dims import ONE, Dim, Product
from hwprune.structure.onnx.rules.table import OnnxCall, rule
from hwprune.structure.scope import Value
from hwprune.structure.torch.rules import contract as semantics


@rule("MatMul")
def matmul(call: OnnxCall) -> Value:
    result = semantics.matmul(call, call.tensor(0), call.tensor(1))
    assert isinstance(result, Value)
    return result


@rule("Gemm")
def gemm(call: OnnxCall) -> Value:
    a, b, bias = call.tensor(0), call.tensor(1), call.optional(2)
    if call.options.get("transA", 0):
        a = Value(a.dims[::-1], a.zeros[::-1], a.parameter)
    if call.options.get("transB", 0):
        b = Value(b.dims[::-1], b.zeros[::-1], b.parameter)
    result = matmul_of(call, a, b)
    if bias is None:
        return result
    call.broadcast([result, bias])
    has_columns = len(bias) > 0 and bias[-1].size != 1
    return Value(result.dims, (False, b.zeros[1] and has_columns and bias.zeros[-1]))


def matmul_of(call: OnnxCall, a: Value, b: Value) -> Value:
    result = semantics.matmul(call, a, b)
    assert isinstance(result, Value)
    return result


@rule("Einsum")
def einsum(call: OnnxCall) -> Value:
    operands = [call.tensor(position) for position in range(len(call.node.input))]
    result = semantics.einsum(call, call.options["equation"], operands)
    return result if isinstance(result, Value) else Value(tuple(result), (False,) * len(result))


@rule("Conv", "ConvTranspose")
def conv(call: OnnxCall) -> Value:
    """Weights (out, in / groups, kernel...), of a transposed one (in, out / groups, kernel...)."""
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    transposed = call.node.op_type == "ConvTranspose"
    groups = int(call.options.get("group", 1))
    for dim in weight.dims[2:]:
        call.freeze(dim, "kernel position")
        call.space.tag(dim, "position")
    for dim in x.dims[2:]:
        call.freeze(dim, "position")
    group = call.space.leaf(groups)
    if transposed:
        call.contract(x, 1, weight, 0)
        out: Dim = call.space.resolve(Product((group, weight[1])))
    else:
        inner = call.space.resolve(Product((group, weight[1])))
        call.contract(x, 1, Value((inner,), (weight.zeros[1],)), 0)
        out = weight[0]
    if groups > 1:
        call.unify(weight[0], Product((group, call.space.leaf(weight[0].size // groups))))
        call.space.tag(group, "depthwise" if weight[1].size == 1 else "group")
        call.resize_attribute("group", lambda kept: kept(group))
    if bias is not None:
        call.unify(bias[0], out)
    call.space.tag(x[1], "conv_in")
    call.space.tag(out, "conv_out")
    spatial = tuple(ONE if size == 1 else call.opaque(size, "position") for size in call.sizes[2:])
    out_zero = weight.zeros[1 if transposed else 0] and (bias is None or bias.zeros[0])
    return Value((x[0], out, *spatial), (x.zeros[0] and bias is None, out_zero, *(False for _ in spatial)))
