"""Normalisations. Over an axis they make it statistical: cutting it changes the statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hwprune.structure.dims import Product
from hwprune.structure.scope import Kept, Value
from hwprune.structure.torch.rules.table import Call, rule, write_argument

aten = torch.ops.aten


@rule(aten.batch_norm.default)
def batch_norm(
    call: Call,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    training: bool,
    *_: Any,
) -> Value:
    for parameter in (weight, bias, mean, var):
        if parameter is not None:
            call.unify(x[1], parameter[0])
    if training or mean is None:  # weight standardisation is written so: the statistics are those of x itself
        for position, dim in enumerate(x.dims):
            if position != 1:
                call.inexact(dim, "its mean and variance run over this axis")
    gone = weight is not None and weight.zeros[0] and (bias is None or bias.zeros[0])
    return Value(x.dims, tuple(position == 1 and gone for position in range(len(x))))


@rule(aten._native_batch_norm_legit_no_training.default)
def fixed_batch_norm(
    call: Call, x: Value, weight: Value | None, bias: Value | None, mean: Value, var: Value, *_: Any
) -> list[Value]:
    """(result, statistics that are empty)."""
    result = batch_norm(call, x, weight, bias, mean, var, training=False)
    return [result, *(Value((call.space.leaf(0),), (False,)) for _ in range(2))]


@rule(aten.layer_norm.default, aten.rms_norm.default)
def layer_norm(call: Call, x: Value, shape: list[int], weight: Value | None, *rest: Any) -> Value:
    bias = rest[0] if rest and isinstance(rest[0], Value) else None
    inner = len(shape)
    for parameter in (weight, bias):
        if parameter is not None:
            for dim, parameter_dim in zip(x.dims[-inner:], parameter.dims, strict=True):
                if parameter_dim.size != 1:
                    call.unify(dim, parameter_dim)
    for dim in x.dims[-inner:]:
        call.inexact(dim, "its mean or variance runs over this axis")
    call.resize("normalized_shape", x.dims[-inner:])
    affine = weight is not None
    outer = tuple(zero and bias is None for zero in x.zeros[:-inner])
    return Value(x.dims, (*outer, *(affine for _ in range(inner))))


@rule(aten.group_norm.default)
def group_norm(call: Call, x: Value, groups: int, weight: Value | None, bias: Value | None, *_: Any) -> Value:
    for parameter in (weight, bias):
        if parameter is not None:
            call.unify(x[1], parameter[0])
    group = call.space.leaf(groups)
    inner = call.space.leaf(x[1].size // groups)
    call.unify(x[1], Product((group, inner)))
    for dim in (inner, *x.dims[2:]):
        call.inexact(dim, "its mean and variance run over this axis")

    def edit(node: fx.Node, kept: Kept) -> None:
        if kept(group) != group.size:
            write_argument(node, "num_groups", kept(group))

    call.on_cut(edit)
    gone = weight is not None and weight.zeros[0] and bias is not None and bias.zeros[0]
    return Value(x.dims, tuple(position == 1 and gone for position in range(len(x))))


@rule(aten.instance_norm.default)
def instance_norm(call: Call, x: Value, *parameters: Any) -> Value:
    for parameter in parameters[:4]:
        if isinstance(parameter, Value):
            call.unify(x[1], parameter[0])
    for dim in x.dims[2:]:  # positions, as a rule; but a group norm may be written so, with channels among them
        call.inexact(dim, "its mean and variance run over this axis")
    weight, bias = parameters[:2]
    affine = isinstance(weight, Value) and weight.zeros[0] and isinstance(bias, Value) and bias.zeros[0]
    return Value(
        x.dims,
        tuple(position == 1 and (affine or (weight is None and bias is None and x.zeros[1])) for position in range(len(x))),
    )


@rule(aten._weight_norm.default)
def weight_norm(call: Call, direction: Value, gain: Value, dim: int = 0) -> Value:
    """w = gain * direction / |direction|, the norm over every dim but ``dim``."""
    call.unify(direction[dim], gain[dim])
    for position, other in enumerate(direction.dims):
        if position != dim % len(direction):
            call.inexact(other, "its norm runs over this axis")
    if direction.parameter is not None:
        # Masked to zero, a row would be 0 / 0; a gain of zero is enough.
        call.unmasked.append((direction.parameter, dim % len(direction)))
    return Value(
        direction.dims, tuple(gain.zeros[dim] and position == dim % len(direction) for position in range(len(direction)))
    )


@rule(aten.cosine_similarity.default)
def cosine_similarity(call: Call, a: Value, b: Value, dim: int = 1, *_: Any) -> Value:
    dims = call.broadcast([a, b])
    if not (a.zeros[dim] and b.zeros[dim]):  # the norms of both run over it
        call.inexact(a[dim], "its norm runs over this axis")
    kept = [d for position, d in enumerate(dims) if position != dim % len(dims)]
    for d in kept:
        call.inexact(d, "divides by what a mask may make zero")
    return Value(tuple(kept), (False,) * len(kept))


@rule(aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten._log_softmax.default)
def softmax(call: Call, x: Value, dim: int, *_: Any) -> Value:
    call.inexact(x[dim], "its sum runs over this axis")
    return Value(x.dims, (False,) * len(x))


@rule(aten.embedding.default)
def embedding(call: Call, weight: Value, indices: Value, *_: Any) -> Value:
    call.freeze(weight[0], "rows are looked up by number")
    call.space.tag(weight[1], "linear_out")
    return Value((*indices.dims, weight[1]), (*(False for _ in indices.dims), weight.zeros[1]))
