"""Operators that pick by number: the dim they pick along can't be cut, all others can."""

from __future__ import annotations

from typing import Any

import torch

from hwprune.structure.dims import Dim
from hwprune.structure.scope import Scope, Value
from hwprune.structure.torch.rules.table import Call, rule

aten = torch.ops.aten

PICKED = "entries are picked by number"


@rule(aten.index.Tensor)
def index(call: Call, x: Value, indices: list[Value | None]) -> Value:
    """``x[:, i, j]``: the dims that are indexed are frozen and make room for the (broadcast) dims of the indices."""
    used = [position for position, entry in enumerate(indices) if entry is not None]
    tensors = [entry for entry in indices if entry is not None]
    for position in used:
        call.freeze(x[position], PICKED)
    picked = call.broadcast(tensors)
    rest = [position for position in range(len(x)) if position not in used]
    # Indices that stand apart put their dims in front (NumPy's rule).
    adjacent = used == list(range(used[0], used[0] + len(used)))
    place = used[0] if adjacent else 0
    dims = [x[p] for p in rest]
    zeros = [x.zeros[p] for p in rest]
    return Value((*dims[:place], *picked, *dims[place:]), (*zeros[:place], *(False for _ in picked), *zeros[place:]))


@rule(aten.index_select.default)
def index_select(call: Call, x: Value, dim: int, which: Value) -> Value:
    dim %= len(x)
    call.freeze(x[dim], PICKED)
    new = which[0] if len(which) else call.opaque(1, PICKED)
    return _replace(x, dim, new)


@rule(aten.gather.default, aten.take_along_dim.default)
def gather(call: Scope, x: Value, dim: Any, which: Any, *_: Any) -> Value:
    """``out[i][j] = x[i][which[i][j]]``: along the other dims x and the index go together."""
    if isinstance(dim, Value):  # take_along_dim(x, indices, dim)
        dim, which = which, dim
    if dim is None:
        raise ValueError("a gather over the flattened tensor")
    dim %= len(x)
    call.freeze(x[dim], PICKED)
    for position in range(len(x)):
        if position == dim or x[position] == which[position]:
            continue
        if x[position].size == which[position].size:
            call.unify(x[position], which[position])
        else:
            call.freeze(x[position], PICKED)
            call.freeze(which[position], PICKED)
    zeros = tuple(zero and position != dim for position, zero in enumerate(x.zeros))
    return Value(which.dims, zeros)


@rule(aten.topk.default, aten.sort.default, aten.sort.stable, aten.kthvalue.default, aten.mode.default)
def order(call: Call, x: Value, *rest: Any) -> list[Value]:
    """Values and their numbers, which mean something only while nothing is removed."""
    if call.node.target in (aten.topk.default, aten.kthvalue.default):
        dim = rest[1]
    else:
        dim = rest[-2] if call.node.target is aten.sort.stable else rest[0]
    dim %= len(x)
    call.freeze(x[dim], "is ordered")
    shapes = call.outputs
    if len(shapes[0]) != len(x):
        kept = [p for p in range(len(x)) if p != dim]
        return [Value(tuple(x[p] for p in kept), (False,) * len(kept))] * 2
    ordered = _replace(x, dim, call.opaque(shapes[0][dim], "is ordered"))
    plain = Value(ordered.dims, (False,) * len(ordered))
    return [plain, plain]


@rule(aten.argmax.default, aten.argmin.default)
def argument(call: Scope, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    if dim is None:
        raise ValueError("the number of an entry of the flattened tensor")
    dim %= len(x)
    call.freeze(x[dim], "its numbers are the result")
    dims = list(x.dims)
    dims[dim : dim + 1] = [call.space.leaf(1)] if keepdim else []
    return Value(tuple(dims), (False,) * len(dims))


@rule(aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default)
def accumulate(call: Scope, x: Value, dim: int, *_: Any) -> Value:
    call.freeze(x[dim], "is accumulated")
    return Value(x.dims, (False,) * len(x))


@rule(aten.cummax.default, aten.cummin.default)
def extremes_so_far(call: Call, x: Value, dim: int) -> list[Value]:
    plain = accumulate(call, x, dim)
    return [plain, plain]


@rule(aten.tril.default, aten.triu.default)
def triangle(call: Scope, x: Value, *_: Any) -> Value:
    for dim in x.dims[-2:]:
        call.freeze(dim, "rows and columns are compared by number")
    return Value(x.dims, x.zeros)


@rule(aten.one_hot.default)
def one_hot(call: Call, x: Value, *_: Any) -> Value:
    return Value((*x.dims, call.opaque(call.sizes[-1], "counts classes")), (False,) * (len(x) + 1))


@rule(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(call: Scope, x: Value, grid: Value, *_: Any) -> Value:
    """(N, C, H, W) sampled at (N, P, Q, 2) -> (N, C, P, Q)."""
    for dim in (*x.dims[2:], *grid.dims[1:]):
        call.freeze(dim, "position")
    call.unify(x[0], grid[0])
    places = grid.dims[1:-1]
    return Value((*x.dims[:2], *places), (*x.zeros[:2], *(False for _ in places)))


@rule("transformers::grouped_mm_fallback", aten._grouped_mm.default)
def grouped_mm(call: Call, x: Value, weight: Value, offsets: Value, *_: Any) -> Value:
    """Mixture of experts: rows of (tokens, in), sorted by expert, times (experts, in, out)."""
    call.freeze(weight[0], "experts are picked by number")
    call.contract(x, 1, weight, 1)
    call.space.tag(weight[2], "linear_out")
    call.space.tag(weight[1], "linear_in")
    call.macs(x[0], weight[1], weight[2])
    return Value((x[0], weight[2]), (x.zeros[0], weight.zeros[2]))


def _replace(x: Value, dim: int, new: Dim) -> Value:
    zeros = tuple(zero and position != dim for position, zero in enumerate(x.zeros))
    return Value((*x.dims[:dim], new, *x.dims[dim + 1 :]), zeros)
