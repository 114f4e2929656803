"""Operators that write into a tensor by number: the dim they write along can't be cut, all others can."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hwprune.structure.scope import Kept, Scope, Value
from hwprune.structure.torch.rules.index import PICKED
from hwprune.structure.torch.rules.table import Call, rule, write_argument

aten = torch.ops.aten


def _aligned(call: Scope, x: Value, others: list[Value], dim: int) -> None:
    """Freeze ``dim``; along every other one all tensors go together, where they are equally long."""
    for tensor in (x, *others):
        call.freeze(tensor[dim], PICKED)
    for position in range(len(x)):
        if position == dim:
            continue
        for other in others:
            if other[position].size == x[position].size:
                call.unify(x[position], other[position])
            else:  # only the first so many rows are written
                call.freeze(x[position], PICKED)
                call.freeze(other[position], PICKED)


def _zeros(x: Value, written: Value | None, dim: int) -> Value:
    """``x`` after writing: zero along a dim where it was and what is written is."""
    zeros = tuple(
        zero and position != dim and (written is None or written.zeros[position]) for position, zero in enumerate(x.zeros)
    )
    return Value(x.dims, zeros)


@rule(aten.scatter.src, aten.scatter_.src, aten.scatter_add.default, aten.scatter_add_.default)
@rule(aten.scatter.reduce, aten.scatter_.reduce)
@rule(aten.scatter_reduce.two, aten.scatter_reduce_.two)
def scattered(call: Scope, x: Value, dim: int, which: Value, source: Value, *_: Any) -> Value:
    dim %= len(x)
    _aligned(call, x, [which, source], dim)
    return _zeros(x, source, dim)


@rule(aten.scatter.value, aten.scatter_.value)
def scatter_value(call: Call, x: Value, dim: int, which: Value, value: Any, *_: Any) -> Value:
    dim %= len(x)
    _aligned(call, x, [which], dim)
    return _zeros(x, None, dim) if value == 0 else Value(x.dims, (False,) * len(x))


@rule(aten.index_add.default, aten.index_add_.default, aten.index_copy.default, aten.index_copy_.default)
@rule(aten.index_reduce.default, aten.index_reduce_.default)
def index_write(call: Call, x: Value, dim: int, which: Value, source: Value, *_: Any) -> Value:
    dim %= len(x)
    for entry in which.dims:
        call.freeze(entry, PICKED)
    _aligned(call, x, [source], dim)
    return _zeros(x, source, dim)


@rule(aten.index_fill.int_Scalar, aten.index_fill_.int_Scalar)
def index_fill(call: Call, x: Value, dim: int, which: Value, value: Any) -> Value:
    for entry in (x[dim], *which.dims):
        call.freeze(entry, PICKED)
    return _zeros(x, None, dim % len(x)) if value == 0 else Value(x.dims, (False,) * len(x))


@rule(aten.index_put.default, aten.index_put_.default)
def index_put(call: Call, x: Value, indices: list[Value | None], values: Value, *_: Any) -> Value:
    """``x[:, i, j] = values``. A mask among the indices stands for as many dims as it has."""
    used: list[int] = []
    place = 0
    masks = False
    sources = call.node.args[1]
    assert isinstance(sources, (list, tuple))
    for entry, source in zip(indices, sources, strict=True):
        boolean = entry is not None and getattr(source, "meta", {})["val"].dtype == torch.bool
        masks = masks or boolean
        count = len(entry) if boolean and entry is not None else 1
        used += range(place, place + count) if entry is not None else ()
        place += count
    tensors = [entry for entry in indices if entry is not None]
    for position in used:
        call.freeze(x[position], PICKED)
    rest = [position for position in range(len(x)) if position not in used]
    if masks:
        for tensor in tensors:
            for dim in tensor.dims:
                call.freeze(dim, PICKED)
        if len(values) > len(rest):
            raise ValueError("as many values as the mask has entries")
        picked: tuple[Any, ...] = ()
        front = len(rest)
    else:
        picked = call.broadcast(tensors)
        for dim in picked:
            call.freeze(dim, PICKED)
        adjacent = used == list(range(used[0], used[0] + len(used)))
        front = sum(position < used[0] for position in rest) if adjacent else 0
    target = [*(x[p] for p in rest[:front]), *picked, *(x[p] for p in rest[front:])]
    call.broadcast([Value(tuple(target), (False,) * len(target)), values])
    zeros = list(x.zeros)
    for number, position in enumerate(rest):
        behind = len(target) - (number if number < front else number + len(picked))
        carries = behind <= len(values) and values[-behind].size != 1
        zeros[position] = zeros[position] and carries and values.zeros[-behind]
    return Value(x.dims, tuple(zero and position not in used for position, zero in enumerate(zeros)))


@rule(aten.copy.default, aten.copy_.default)
def copied(call: Call, x: Value, source: Value, *_: Any) -> Value:
    """``x[...] = source``: what is written over is forgotten."""
    dims = call.broadcast([x, source])
    zeros = tuple(
        call.is_frozen(dims[p]) or (-p <= len(source) and source[p].size != 1 and source.zeros[p]) for p in range(-len(dims), 0)
    )
    return Value(dims, zeros)


@rule(aten.slice_scatter.default)
def slice_scatter(
    call: Call, x: Value, source: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    """``x`` with ``x[start:end]`` along ``dim`` written over."""
    dim %= len(x)
    size, length = x[dim].size, source[dim].size
    first = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
    if step != 1 or first + length > size:
        raise ValueError("written with a step, or to a bound that is computed")
    before, written, _ = call.parts(x[dim], [first, length, size - first - length])
    call.unify(written, source[dim])
    for position in range(len(x)):
        if position != dim:
            call.unify(x[position], source[position])

    def edit(node: fx.Node, kept: Kept) -> None:
        if kept(x[dim]) != size:
            write_argument(node, "start", kept(before))
            write_argument(node, "end", kept(before) + kept(written))

    call.on_cut(edit)
    return Value(x.dims, tuple(zero and source.zeros[position] for position, zero in enumerate(x.zeros)))


@rule(aten.select_scatter.default)
def select_scatter(call: Call, x: Value, source: Value, dim: int, index: int) -> Value:
    dim %= len(x)
    call.freeze(x[dim], PICKED)
    rest = [position for position in range(len(x)) if position != dim]
    for position, theirs in zip(rest, source.dims, strict=True):
        call.unify(x[position], theirs)
    spread = iter(source.zeros)
    return _zeros(x, Value(x.dims, tuple(False if position == dim else next(spread) for position in range(len(x)))), dim)
