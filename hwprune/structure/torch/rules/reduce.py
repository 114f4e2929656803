"""Reductions and pooling."""

from __future__ import annotations

from typing import Any

import torch

from hwprune.structure.dims import ONE, Dim
from hwprune.structure.scope import Scope, Value
from hwprune.structure.torch.rules.table import Call, rule

aten = torch.ops.aten


def reduce(call: Scope, x: Value, dims: list[int] | int | None, keepdim: bool, exact_if_zero: bool) -> Value:
    positions = list(range(len(x))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    positions = [dim % len(x) for dim in positions] if len(x) else []
    for position in positions:
        if not (exact_if_zero and x.zeros[position]):
            call.inexact(x[position], "a statistic runs over this axis")
    kept: list[tuple[Dim, bool]] = []
    for position, (dim, zero) in enumerate(zip(x.dims, x.zeros, strict=True)):
        if position not in positions:
            kept.append((dim, zero))
        elif keepdim:
            kept.append((ONE, False))
    return Value(tuple(dim for dim, _ in kept), tuple(zero for _, zero in kept))


@rule(aten.sum.dim_IntList)
def sum_over(call: Call, x: Value, dims: Any, keepdim: bool = False, *_: Any) -> Value:
    return reduce(call, x, dims, keepdim, exact_if_zero=True)


@rule(aten.mean.dim, aten.amax.default, aten.amin.default, aten.any.dim, aten.any.dims)
def mean_over(call: Call, x: Value, dims: Any, keepdim: bool = False, *_: Any) -> Value:
    return reduce(call, x, dims, keepdim, exact_if_zero=False)


@rule(aten.sum.default, aten.mean.default)
def over_all(call: Call, x: Value, *_: Any) -> Value:
    return reduce(call, x, None, keepdim=False, exact_if_zero=False)


@rule(aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim)
def norm(call: Call, x: Value, order: Any, dims: Any, keepdim: bool = False, *_: Any) -> Value:
    return reduce(call, x, dims, keepdim, exact_if_zero=isinstance(order, (int, float)) and order > 0)


@rule(aten.logsumexp.default, aten.prod.dim_int, aten.all.dim, aten.all.dims)
def moved_over(call: Call, x: Value, dims: Any, keepdim: bool = False, *_: Any) -> Value:
    """Reductions whose result over zeros is not zero."""
    result = reduce(call, x, dims, keepdim, exact_if_zero=False)
    return Value(result.dims, (False,) * len(result))


@rule(aten.std_mean.correction, aten.var_mean.correction)
def moments(call: Call, x: Value, dims: Any, correction: Any = None, keepdim: bool = False) -> list[Value]:
    result = reduce(call, x, dims, keepdim, exact_if_zero=False)
    plain = Value(result.dims, (False,) * len(result))
    return [plain, plain]


@rule(aten.var.correction, aten.std.correction)
def variance(call: Call, x: Value, dims: Any, correction: Any, keepdim: bool = False) -> Value:
    result = reduce(call, x, dims, keepdim, exact_if_zero=False)
    return Value(result.dims, (False,) * len(result))


@rule(aten.var.dim, aten.std.dim)
def variance_dim(call: Call, x: Value, dims: Any, unbiased: bool = True, keepdim: bool = False) -> Value:
    result = reduce(call, x, dims, keepdim, exact_if_zero=False)
    return Value(result.dims, (False,) * len(result))


def pool(call: Scope, x: Value, spatial: int) -> Value:
    lead = len(x) - spatial
    for dim in x.dims[lead:]:
        call.freeze(dim, "position")
    positions = tuple(ONE if size == 1 else call.opaque(size, "position") for size in call.sizes[lead:])
    return Value((*x.dims[:lead], *positions), (*x.zeros[:lead], *(False for _ in positions)))


@rule(aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default)
@rule(aten.upsample_nearest1d.default, aten.upsample_nearest1d.vec, aten.upsample_linear1d.default, aten.upsample_linear1d.vec)
def pool1d(call: Call, x: Value, *_: Any) -> Value:
    return pool(call, x, 1)


@rule(
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec,
    aten.upsample_bicubic2d.default,
    aten._upsample_bilinear2d_aa.default,
    aten._upsample_bilinear2d_aa.vec,
    aten._upsample_bicubic2d_aa.default,
    aten._upsample_bicubic2d_aa.vec,
    aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact2d.vec,
)
def pool2d(call: Call, x: Value, *_: Any) -> Value:
    return pool(call, x, 2)


@rule(aten.adaptive_max_pool2d.default, aten.max_pool2d_with_indices.default)
def pool2d_with_indices(call: Call, x: Value, *_: Any) -> list[Value]:
    pooled = pool(call, x, 2)
    return [pooled, Value(pooled.dims, (False,) * len(pooled))]


@rule(aten.max_unpool2d.default, aten.max_unpool3d.default)
def unpool(call: Call, x: Value, places: Value, *_: Any) -> Value:
    """Each channel's values go to the places that its pooling noted."""
    spatial = 2 if call.node.target is aten.max_unpool2d.default else 3
    for mine, theirs in zip(x.dims, places.dims, strict=True):
        call.unify(mine, theirs)
    return pool(call, x, spatial)


@rule(aten.adaptive_max_pool1d.default, aten.max_pool1d_with_indices.default)
def pool1d_with_indices(call: Call, x: Value, *_: Any) -> list[Value]:
    pooled = pool(call, x, 1)
    return [pooled, Value(pooled.dims, (False,) * len(pooled))]


@rule(aten.adaptive_max_pool3d.default, aten.max_pool3d_with_indices.default)
def pool3d_with_indices(call: Call, x: Value, *_: Any) -> list[Value]:
    pooled = pool(call, x, 3)
    return [pooled, Value(pooled.dims, (False,) * len(pooled))]


@rule(aten.max.dim, aten.min.dim, aten.median.dim)
def extreme(call: Call, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
    if any(user.args[1:] == (1,) and user.users for user in call.node.users):
        call.freeze(x[dim], "its numbers are read")
    reduced = reduce(call, x, dim, keepdim, exact_if_zero=False)
    return [reduced, Value(reduced.dims, (False,) * len(reduced))]


@rule(
    aten.max_pool3d.default,
    aten.avg_pool3d.default,
    aten.adaptive_avg_pool3d.default,
    aten.upsample_nearest3d.default,
    aten.upsample_nearest3d.vec,
    aten.upsample_trilinear3d.vec,
)
def pool3d(call: Call, x: Value, *_: Any) -> Value:
    return pool(call, x, 3)
