"""Tensors made from nothing: constants whose sizes may be cut along with what they meet."""

from __future__ import annotations

from typing import Any

import torch

from hwprune.structure.scope import Value
from hwprune.structure.torch.rules.table import Call, read_argument, rule

aten = torch.ops.aten


@rule(aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format)
@rule(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default)
def filled(call: Call, *_: Any) -> Value:
    """Zeros are zero where an index is removed, as everywhere; so is memory that nobody has written to yet."""
    dims = tuple(call.space.leaf(size) for size in call.sizes)
    for entry, dim in zip(read_argument(call.node, "size"), dims, strict=True):
        if not isinstance(entry, int):
            call.freeze(dim, "its size is computed at run time")
    call.resize("size", dims)
    return Value(dims, (_zero(call),) * len(dims))


def _zero(call: Call) -> bool:
    kind = str(call.node.target.overloadpacket).rpartition(".")[2]  # type: ignore[union-attr]  # an operator
    fills = kind.startswith(("full", "new_full"))
    return read_argument(call.node, "fill_value") == 0 if fills else "zero" in kind or "empty" in kind


@rule(
    aten.zero.default,
    aten.zero_.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
)
def filled_like(call: Call, x: Value, *_: Any) -> Value:
    return Value(x.dims, (_zero(call),) * len(x))


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def counted(call: Call, *_: Any) -> Value:
    dims = tuple(call.opaque(size, "counts positions") for size in call.sizes)
    return Value(dims, (False,) * len(dims))
