"""Normalisations, reductions and pooling."""

from __future__ import annotations

from hwprune.structure.dims import Product
from hwprune.structure.onnx.rules.table import OnnxCall, rule
from hwprune.structure.scope import Value
from hwprune.structure.torch.rules.reduce import pool, reduce


@rule("BatchNormalization")
def batch_norm(call: OnnxCall) -> list[Value]:
    x, weight, bias = call.tensor(0), call.tensor(1), call.tensor(2)
    for position in range(1, 5):
        call.unify(x[1], call.tensor(position)[0])
    gone = weight.zeros[0] and bias.zeros[0]
    return [Value(x.dims, tuple(position == 1 and gone for position in range(len(x))))]


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(call: OnnxCall) -> list[Value]:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    start = call.options.get("axis", -1) % len(x)
    for parameter in (weight, bias):
        if parameter is not None:
            call.broadcast([x, parameter])
    for dim in x.dims[start:]:
        call.inexact(dim, "its mean or variance runs over this axis")
    zeros = tuple(zero and bias is None if position < start else weight.zeros[-1] for position, zero in enumerate(x.zeros))
    return [Value(x.dims, zeros)]


@rule("InstanceNormalization")
def instance_norm(call: OnnxCall) -> Value:
    x = call.tensor(0)
    for position in (1, 2):
        call.unify(x[1], call.tensor(position)[0])
    for dim in x.dims[2:]:  # positions, as a rule; but a group norm may be written so, with channels among them
        call.inexact(dim, "its mean and variance run over this axis")
    return Value(
        x.dims, tuple(position == 1 and call.tensor(1).zeros[0] and call.tensor(2).zeros[0] for position in range(len(x)))
    )


@rule("GroupNormalization")
def group_norm(call: OnnxCall) -> Value:
    x = call.tensor(0)
    groups = int(call.options["num_groups"])
    for position in (1, 2):
        if call.tensor(position)[0].size != x[1].size:
            raise ValueError("one gain for each group")
        call.unify(x[1], call.tensor(position)[0])
    group, inner = call.space.leaf(groups), call.space.leaf(x[1].size // groups)
    call.unify(x[1], Product((group, inner)))
    for dim in (inner, *x.dims[2:]):
        call.inexact(dim, "its mean and variance run over this axis")
    call.resize_attribute("num_groups", lambda kept: kept(group))
    gone = call.tensor(1).zeros[0] and call.tensor(2).zeros[0]
    return Value(x.dims, tuple(position == 1 and gone for position in range(len(x))))


@rule("Softmax", "LogSoftmax")
def softmax(call: OnnxCall) -> Value:
    x = call.tensor(0)
    # Before opset 13 the operator flattens everything from the axis on.
    dims = x.dims[call.options.get("axis", 1) :] if call.opset < 13 else (x[call.options.get("axis", -1)],)
    for dim in dims:
        call.inexact(dim, "its sum runs over this axis")
    return Value(x.dims, (False,) * len(x))


@rule("LpNormalization", "LRN", "MeanVarianceNormalization")
def normalise(call: OnnxCall) -> Value:
    x = call.tensor(0)
    positions = [call.options.get("axis", -1)] if call.node.op_type == "LpNormalization" else range(len(x))
    for position in positions:
        call.inexact(x[position], "a statistic runs over this axis")
    return Value(x.dims, (False,) * len(x))


def _axes(call: OnnxCall) -> list[int]:
    axes = call.integers(1, "axes")
    if not axes:
        if call.options.get("noop_with_empty_axes", 0):
            raise ValueError("a reduction over nothing")
        return list(range(len(call.tensor(0))))
    return axes


@rule("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
def reduce_sum(call: OnnxCall) -> Value:
    return reduce(call, call.tensor(0), _axes(call), bool(call.options.get("keepdims", 1)), exact_if_zero=True)


@rule("ReduceMean", "ReduceMax", "ReduceMin")
def reduce_mean(call: OnnxCall) -> Value:
    return reduce(call, call.tensor(0), _axes(call), bool(call.options.get("keepdims", 1)), exact_if_zero=False)


@rule("ReduceProd", "ReduceLogSum", "ReduceLogSumExp")
def reduce_other(call: OnnxCall) -> Value:
    result = reduce(call, call.tensor(0), _axes(call), bool(call.options.get("keepdims", 1)), exact_if_zero=False)
    return Value(result.dims, (False,) * len(result))


@rule("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pooled(call: OnnxCall) -> list[Value]:
    x = call.tensor(0)
    first = pool(call, x, len(x) - 2)
    return [first, Value(first.dims, (False,) * len(first))][: len(call.outputs)]


@rule("Resize", "Upsample")
def resize(call: OnnxCall) -> Value:
    """Batch and channels stay, the positions are frozen."""
    x = call.tensor(0)
    scales = call.known[-1] if call.node.op_type == "Upsample" else None
    if call.options.get("axes") is not None:
        raise ValueError("resizes chosen axes")
    if any(size != dim.size for size, dim in zip(call.sizes[:2], x.dims[:2], strict=True)) or (scales is None and len(x) < 3):
        raise ValueError("resizes the channels")
    result = pool(call, x, len(x) - 2)
    if len(call.node.input) > 3 and call.node.input[3]:
        given = call.integers(3) or []
        dims = (*x.dims[:2], *result.dims[2:])
        call.sizes_after(3, dims, given)
    return result
