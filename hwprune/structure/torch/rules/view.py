"""Operators that move, merge, split or pick dims without computing."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hwprune.structure.dims import ONE, Dim, MismatchError, Product
from hwprune.structure.scope import Kept, Value
from hwprune.structure.torch.rules.table import Call, read_argument, rule, write_argument

aten = torch.ops.aten


@rule(aten.view.default, aten._unsafe_view.default)
def view(call: Call, x: Value, size: Any) -> Value:
    result = call.regroup(x, call.sizes)
    call.resize("size", result.dims)
    return result


@rule(aten.reshape.default)
def reshape(call: Call, x: Value, shape: Any) -> Value:
    result = call.regroup(x, call.sizes)
    call.resize("shape", result.dims)
    return result


@rule(aten.reshape_as.default, aten.view_as.default)
def reshape_as(call: Call, x: Value, other: Value) -> Value:
    """The sizes are read from the other tensor, so its dims must be those that x is regrouped to."""
    result = call.regroup(x, call.sizes)
    for mine, theirs in zip(result.dims, other.dims, strict=True):
        call.unify(mine, theirs)
    return result


@rule(aten.flatten.using_ints, aten.unsqueeze.default)
def regroup(call: Call, x: Value, *_: Any) -> Value:
    return call.regroup(x, call.sizes)


@rule(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze(call: Call, x: Value, which: int | list[int] | None = None) -> Value:
    positions = range(len(x)) if which is None else [which] if isinstance(which, int) else which
    gone = sorted({position % len(x) for position in positions if x[position].size == 1})

    def edit(node: fx.Node, kept: Kept) -> None:
        # An axis that is cut to a single index must not vanish: name the dims that had size 1 before.
        node.target = aten.squeeze.dims
        node.args = (node.args[0], gone)
        node.kwargs = {}

    call.on_cut(edit)
    stays = [position for position in range(len(x)) if position not in gone]
    return Value(tuple(x.dims[p] for p in stays), tuple(x.zeros[p] for p in stays))


@rule(aten.unflatten.int)
def unflatten(call: Call, x: Value, dim: int, sizes: Any) -> Value:
    result = call.regroup(x, call.sizes)
    start = dim % len(x)
    call.resize("sizes", result.dims[start : start + len(sizes)])
    return result


@rule(aten.permute.default)
def permute(call: Call, x: Value, order: list[int]) -> Value:
    return Value(tuple(x.dims[i] for i in order), tuple(x.zeros[i] for i in order))


@rule(aten.movedim.intlist)
def movedims(call: Call, x: Value, source: list[int], destination: list[int]) -> Value:
    order = [i for i in range(len(x)) if i not in {s % len(x) for s in source}]
    for to, origin in sorted((d % len(x), s % len(x)) for s, d in zip(source, destination, strict=True)):
        order.insert(to, origin)
    return Value(tuple(x.dims[i] for i in order), tuple(x.zeros[i] for i in order))


@rule(aten.movedim.int)
def movedim(call: Call, x: Value, source: int, destination: int) -> Value:
    order = [i for i in range(len(x)) if i != source % len(x)]
    order.insert(destination % len(x), source % len(x))
    return Value(tuple(x.dims[i] for i in order), tuple(x.zeros[i] for i in order))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(call: Call, x: Value, repeats: int, dim: int | None = None, *_: Any) -> Value:
    """Each index is repeated in place: Product(index, copy). This is how KV heads are often repeated."""
    if dim is None:
        for axis in x.dims:
            call.freeze(axis, "is flattened and repeated")
        return Value(tuple(call.opaque(size, "is repeated") for size in call.sizes), (False,) * len(call.sizes))
    dim %= len(x)
    copies = call.opaque(repeats, "counts copies")
    repeated = call.space.resolve(Product((x[dim], copies)))

    def edit(node: fx.Node, kept: Kept) -> None:
        if kept(repeated) != repeated.size:
            write_argument(node, "output_size", None)

    call.on_cut(edit)
    return Value((*x.dims[:dim], repeated, *x.dims[dim + 1 :]), x.zeros)


@rule(aten.transpose.int, aten.transpose_.default, aten.swapaxes.default, aten.swapdims.default)
def transpose(call: Call, x: Value, a: int, b: int) -> Value:
    order = list(range(len(x)))
    order[a], order[b] = order[b], order[a]
    return Value(tuple(x.dims[i] for i in order), tuple(x.zeros[i] for i in order))


@rule(aten.numpy_T.default)
def reverse(call: Call, x: Value) -> Value:
    return Value(x.dims[::-1], x.zeros[::-1])


@rule(aten.t.default, aten.mT.default)
def turn(call: Call, x: Value) -> Value:
    if len(x) < 2:
        return x
    order = [*range(len(x) - 2), len(x) - 1, len(x) - 2]
    return Value(tuple(x.dims[i] for i in order), tuple(x.zeros[i] for i in order))


@rule(aten.expand.default)
def expand(call: Call, x: Value, _size: Any, *_: Any) -> Value:
    new = len(call.sizes) - len(x)
    size = read_argument(call.node, "size")
    dims: list[Dim] = []
    zeros: list[bool] = []
    for position, wanted in enumerate(call.sizes):
        old = x[position - new] if position >= new else ONE
        if old.size == wanted:
            dims.append(old)
            zeros.append(x.zeros[position - new] if position >= new else False)
        else:
            # Copies: an index may go (GQA's repeated KV heads); all copies are equal.
            copies = call.space.leaf(wanted)
            if not isinstance(size[position], int):
                call.freeze(copies, "one copy for each example")
            dims.append(copies)
            zeros.append(False)
    call.resize("size", dims)
    return Value(tuple(dims), tuple(zeros))


@rule(aten.expand_as.default)
def expand_as(call: Call, x: Value, other: Value) -> Value:
    dims = call.broadcast([x, other])
    return Value(dims, (False,) * len(dims))


@rule(aten.select.int)
def select(call: Call, x: Value, dim: int, index: int) -> Value:
    dim %= len(x)
    call.pick(x[dim], index)
    rest = [i for i in range(len(x)) if i != dim]
    return Value(tuple(x.dims[i] for i in rest), tuple(x.zeros[i] for i in rest))


@rule(aten.unbind.int)
def unbind(call: Call, x: Value, dim: int = 0) -> list[Value]:
    dim %= len(x)
    call.freeze(x[dim], "is taken apart by number")
    rest = [i for i in range(len(x)) if i != dim]
    piece = Value(tuple(x.dims[i] for i in rest), tuple(x.zeros[i] for i in rest))
    return [piece] * x[dim].size


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(call: Call, x: Value, factor: int) -> Value:
    """Channels (C, r, r) become positions: only the C outer ones can go."""
    return _shuffled(call, x, x[-3].size // factor**2, factor)


@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(call: Call, x: Value, factor: int) -> Value:
    for dim in x.dims[-2:]:
        call.freeze(dim, "position")
    channels = call.space.resolve(Product((x[-3], *(call.opaque(factor, "position") for _ in range(2)))))
    spatial = [call.opaque(size, "position") for size in call.sizes[-2:]]
    return Value((*x.dims[:-3], channels, *spatial), (*x.zeros[:-2], False, False))


def _shuffled(call: Call, x: Value, outer: int, factor: int) -> Value:
    try:
        channel, *inner = call.space.factor(x[-3], [outer, factor, factor])
    except MismatchError as mismatch:
        call.freeze(x[-3], str(mismatch))
        channel, inner = call.opaque(outer, str(mismatch)), []
    for dim in (*inner, *x.dims[-2:]):
        call.freeze(dim, "position")
    spatial = [call.opaque(size, "position") for size in call.sizes[-2:]]
    return Value((*x.dims[:-3], channel, *spatial), (*x.zeros[:-2], False, False))


@rule(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
def channel_shuffle(call: Call, x: Value, groups: int) -> Value:
    """(group, n) -> (n, group)."""
    group, inner = call.space.factor(x[1], [groups, x[1].size // groups])

    def edit(node: fx.Node, kept: Kept) -> None:
        if kept(group) != group.size:
            write_argument(node, "groups", kept(group))

    call.on_cut(edit)
    return Value((x[0], call.space.resolve(Product((inner, group))), *x.dims[2:]), x.zeros)


@rule(aten.im2col.default)
def im2col(call: Call, x: Value, *_: Any) -> Value:
    """(N, C, H, W) -> (N, C * kernel positions, places)."""
    for dim in x.dims[-2:]:
        call.freeze(dim, "position")
    kernel = call.opaque(call.sizes[-2] // x[-3].size, "kernel position")
    channels = call.space.resolve(Product((x[-3], kernel)))
    return Value((*x.dims[:-3], channels, call.opaque(call.sizes[-1], "position")), (*x.zeros[:-2], False))


@rule(aten.col2im.default)
def col2im(call: Call, x: Value, *_: Any) -> Value:
    channel, kernel = call.space.factor(x[-2], [call.sizes[-3], x[-2].size // call.sizes[-3]])
    for dim in (kernel, x[-1]):
        call.freeze(dim, "kernel position")
    spatial = [call.opaque(size, "position") for size in call.sizes[-2:]]
    return Value((*x.dims[:-2], channel, *spatial), (*x.zeros[:-1], False, False))


@rule(aten.unfold.default)
def unfold(call: Call, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows along ``dim``; the position inside the window becomes the last dim."""
    dim %= len(x)
    call.freeze(x[dim], "windows slide over it")
    places, inside = (call.opaque(n, "windows slide over it") for n in (call.sizes[dim], size))
    zeros = tuple(zero and p != dim for p, zero in enumerate(x.zeros))
    return Value((*x.dims[:dim], places, *x.dims[dim + 1 :], inside), (*zeros, False))


@rule(aten.diagonal.default)
def diagonal(call: Call, x: Value, offset: int = 0, a: int = 0, b: int = 1) -> Value:
    rest = [p for p in range(len(x)) if p not in (a % len(x), b % len(x))]
    for p in (a, b):
        call.freeze(x[p], "rows and columns are compared by number")
    diagonal_dim = call.opaque(call.sizes[-1], "rows and columns are compared by number")
    return Value((*(x.dims[p] for p in rest), diagonal_dim), (*(x.zeros[p] for p in rest), False))


@rule(aten.flip.default, aten.roll.default)
def reorder(call: Call, x: Value, *arguments: Any) -> Value:
    dims = arguments[-1]
    for dim in dims or range(len(x)):
        call.freeze(x[dim], "is reordered")
    return Value(x.dims, x.zeros)


@rule(aten.repeat.default)
def repeat(call: Call, x: Value, repeats: list[Any]) -> Value:
    """Copies end to end: Product(copy, index)."""
    new = len(repeats) - len(x)
    dims: list[Dim] = []
    zeros: list[bool] = []
    for position, wanted in enumerate(call.sizes):
        old = x[position - new] if position >= new else ONE
        zeros.append(position >= new and x.zeros[position - new])
        copies = call.opaque(wanted // old.size, "is repeated") if old.size else call.opaque(wanted, "is repeated")
        dims.append(call.space.resolve(Product((copies, old))))
    return Value(tuple(dims), tuple(zeros))
