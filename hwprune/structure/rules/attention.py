"""Fused attention."""

from __future__ import annotations

import torch
from torch import fx

from hwprune.structure.dims import Dim, Product
from hwprune.structure.rules.table import Call, Kept, Value, rule, write_argument

aten = torch.ops.aten


@rule(aten.scaled_dot_product_attention.default)
def attention(
    call: Call,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    gqa: bool,
) -> Value:
    """(..., heads, T, d) x (..., heads, S, d) x (..., heads, S, e) -> (..., heads, T, e)."""
    call.contract(query, -1, key, -1)
    call.unify(key[-2], value[-2])
    call.inexact(key[-2], "softmax runs over this axis")
    batch: tuple[Dim, ...] = query.dims[:-2]
    for one in (key, value):
        for mine, theirs in zip(reversed(batch), reversed(one.dims[:-2]), strict=False):
            if mine.size == theirs.size:
                call.unify(mine, theirs)
            elif gqa and theirs.size > 1 and mine.size % theirs.size == 0:
                # Query head h reads KV head h // group: query heads = Product(kv heads, group).
                call.unify(mine, Product((theirs, call.space.leaf(mine.size // theirs.size))))
    if mask is not None:
        out = Value((*batch, query[-2], key[-2]), (False,) * len(query))
        call.broadcast([out, mask])
    for dim in batch:
        call.space.tag(dim, "attention_batch")
    call.space.tag(query[-1], "attention_inner")
    call.space.tag(value[-1], "attention_inner")
    call.macs(*batch, query[-2], key[-2], query[-1])
    call.macs(*batch, query[-2], key[-2], value[-1])
    if scale is None:
        # The implicit scale is 1 / sqrt(head_dim): a cut of head_dim would change it silently.
        pinned = float(query[-1].size) ** -0.5

        def edit(node: fx.Node, kept: Kept) -> None:
            if kept(query[-1]) != query[-1].size:
                write_argument(node, "scale", pinned)

        call.on_cut(edit)
    zeros = (*value.zeros[:-2][-len(batch) :], False, value.zeros[-1])
    zeros = (False,) * (len(query) - len(zeros)) + zeros
    return Value((*batch, query[-2], value[-1]), zeros)
