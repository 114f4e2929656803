"""Fused attention."""

from __future__ import annotations

import torch
from torch import fx

from hwprune.structure.dims import ONE, Dim, Product
from hwprune.structure.scope import Kept, Value
from hwprune.structure.torch.rules.table import Call, rule, write_argument

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
    for tensor in (query, key) if causal else ():
        call.freeze(tensor[-2], "rows and columns are compared by number")
    heads = [Value(tensor.dims[:-2], tensor.zeros[:-2]) for tensor in (query, key, value)]
    if gqa:  # the operator repeats the KV heads: all but the heads broadcast
        shared = call.broadcast([Value(head.dims[:-1], head.zeros[:-1]) for head in heads])
        batch: tuple[Dim, ...] = (*shared, query[-3])
    else:
        batch = call.broadcast(heads)
    for tensor in (key, value):
        mine, theirs = query[-3] if len(query) > 2 else ONE, tensor[-3] if len(tensor) > 2 else ONE
        if gqa and 1 < theirs.size < mine.size:
            # Query head h reads KV head h // group: query heads = Product(kv heads, group).
            call.unify(mine, Product((theirs, call.space.leaf(mine.size // theirs.size))))
        elif gqa and theirs.size == mine.size:
            call.unify(mine, theirs)
    if mask is not None:
        out = Value((*batch, query[-2], key[-2]), (False,) * (len(batch) + 2))
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
    # A head whose values are zero gives zeros; a head that is repeated or broadcast does not.
    carried = [
        -p <= len(value) - 2 and value.dims[:-2][p].size == batch[p].size and value.zeros[:-2][p] for p in range(-len(batch), 0)
    ]
    return Value((*batch, query[-2], value[-1]), (*carried, False, value.zeros[-1]))
