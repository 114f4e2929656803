"""Tensors made from nothing: constants whose sizes may be cut along with what they meet."""

from __future__ import annotations

from typing import Any

import torch

from hwprune.structure.rules.table import Call, Value, rule

aten = torch.ops.aten


@rule(aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format)
def filled(call: Call, *_: Any) -> Value:
    dims = tuple(call.space.leaf(size) for size in call.sizes)
    call.resize("size", dims)
    return Value(dims, (False,) * len(dims))


@rule(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default)
def filled_like(call: Call, x: Value, *_: Any) -> Value:
    return Value(x.dims, (False,) * len(x))


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def counted(call: Call, *_: Any) -> Value:
    dims = tuple(call.opaque(size, "counts positions") for size in call.sizes)
    return Value(dims, (False,) * len(dims))
