"""Concatenation, splitting, slicing and padding: what makes and undoes `Concat`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from hwprune.structure.dims import Concat, Dim, MismatchError
from hwprune.structure.scope import Kept, Scope, Value
from hwprune.structure.torch.rules.table import Call, rule, write_argument

aten = torch.ops.aten


@rule(aten.cat.default)
def cat(call: Call, tensors: list[Value], dim: int = 0) -> Value:
    return join(call, [t for t in tensors if not (len(t) == 1 and t[0].size == 0)], dim)


def join(call: Scope, tensors: Sequence[Value], dim: int) -> Value:
    """The tensors laid end to end along ``dim``; their other dims unify."""
    dim %= len(tensors[0])
    joined = call.space.resolve(Concat(tuple(t[dim] for t in tensors)))
    dims = list(tensors[0].dims)
    for other in tensors[1:]:
        for position, (mine, theirs) in enumerate(zip(dims, other.dims, strict=True)):
            if position != dim:
                call.unify(mine, theirs)
    dims[dim] = joined
    zeros = tuple(all(t.zeros[p] for t in tensors) for p in range(len(dims)))
    return Value(tuple(dims), zeros)


@rule(aten.stack.default)
def stack(call: Call, tensors: list[Value], dim: int = 0) -> Value:
    first = tensors[0]
    dim %= len(first) + 1
    for other in tensors[1:]:
        for mine, theirs in zip(first.dims, other.dims, strict=True):
            call.unify(mine, theirs)
    new = call.opaque(len(tensors), "stacks tensors")
    zeros = [all(t.zeros[p] for t in tensors) for p in range(len(first))]
    return Value((*first.dims[:dim], new, *first.dims[dim:]), (*zeros[:dim], False, *zeros[dim:]))


def _split(call: Call, x: Value, sizes: list[int], dim: int) -> list[Value]:
    dim %= len(x)
    parts = call.parts(x[dim], sizes)

    def edit(node: fx.Node, kept: Kept) -> None:
        now = [kept(part) for part in parts]
        if now != sizes:
            node.target = aten.split_with_sizes.default
            node.args = (node.args[0], now, dim)
            node.kwargs = {}

    call.on_cut(edit)
    return [Value((*x.dims[:dim], part, *x.dims[dim + 1 :]), x.zeros) for part in parts]


@rule(aten.split.Tensor)
def split(call: Call, x: Value, size: int, dim: int = 0) -> list[Value]:
    return _split(call, x, [output[dim] for output in call.outputs], dim)


@rule(aten.split_with_sizes.default, aten.split.sizes)
def split_with_sizes(call: Call, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    return _split(call, x, [output[dim] for output in call.outputs], dim)


@rule(aten.chunk.default, aten.tensor_split.sections, aten.tensor_split.indices, aten.unsafe_chunk.default)
def chunk(call: Call, x: Value, count: int | list[int], dim: int = 0) -> list[Value]:
    return _split(call, x, [output[dim] for output in call.outputs], dim)


@rule(aten.slice.Tensor)
def slice_(call: Call, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Value:
    dim %= len(x)
    size, out = x[dim].size, call.sizes[dim]
    if out == size:
        return x
    first = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
    if step != 1 and out * step == size and first < step:
        # Every step-th index: the outer factor of (out, step).
        new, skipped = _factors(call, x[dim], [out, step])
        call.freeze(skipped, "is sliced with a step")

        def edit_end(node: fx.Node, kept: Kept) -> None:
            if kept(x[dim]) != size:
                write_argument(node, "start", first)
                write_argument(node, "end", kept(x[dim]))

        call.on_cut(edit_end)
    elif step != 1 or first + out > size:
        call.freeze(x[dim], "is sliced with a step" if step != 1 else "is sliced by a computed bound")
        new = call.opaque(out, "is sliced with a step")
    else:
        before, new, _ = call.parts(x[dim], [first, out, size - first - out])

        def edit(node: fx.Node, kept: Kept) -> None:
            if kept(x[dim]) != size:
                write_argument(node, "start", kept(before))
                write_argument(node, "end", kept(before) + kept(new))

        call.on_cut(edit)
    return Value((*x.dims[:dim], new, *x.dims[dim + 1 :]), x.zeros)


def _factors(call: Call, dim: Dim, sizes: list[int]) -> list[Dim]:
    try:
        return call.space.factor(dim, sizes)
    except MismatchError as mismatch:
        call.freeze(dim, str(mismatch))
        return [call.opaque(size, str(mismatch)) for size in sizes]


@rule(aten.narrow.default)
def narrow(call: Call, x: Value, dim: int, start: int, length: int) -> Value:
    dim %= len(x)
    size = x[dim].size
    if length == size:
        return x
    first = start % size
    before, new, _ = call.parts(x[dim], [first, length, size - first - length])

    def edit(node: fx.Node, kept: Kept) -> None:
        write_argument(node, "start", kept(before))
        write_argument(node, "length", kept(new))

    call.on_cut(edit)
    return Value((*x.dims[:dim], new, *x.dims[dim + 1 :]), x.zeros)


def _pad(call: Call, x: Value, amounts: list[int], constant: bool, fill: float) -> Value:
    dims, zeros = list(x.dims), list(x.zeros)
    changed: list[tuple[int, Dim, Dim]] = []
    for place in range(len(amounts) // 2):
        position = len(x) - 1 - place
        left, right = amounts[2 * place], amounts[2 * place + 1]
        if left == right == 0:
            continue
        if not constant or left < 0 or right < 0:
            call.freeze(dims[position], "is padded")
            dims[position] = call.opaque(call.sizes[position], "is padded")
            zeros[position] = False
            continue
        before, after = call.space.leaf(left), call.space.leaf(right)
        # Padding of exactly one index is ONE, which can't be removed: sound, only less free.
        dims[position] = call.space.resolve(Concat((before, dims[position], after)))
        changed.append((place, before, after))

    def edit(node: fx.Node, kept: Kept) -> None:
        now = list(amounts)
        for place, before, after in changed:
            now[2 * place], now[2 * place + 1] = kept(before), kept(after)
        write_argument(node, "pad", now)

    if changed:
        call.on_cut(edit)
    if fill != 0:  # the padding lies along every other dim too
        zeros = [False] * len(zeros)
    return Value(tuple(dims), tuple(zeros))


@rule(aten.pad.default)
def pad(call: Call, x: Value, amounts: Any, mode: str = "constant", fill: float | None = None) -> Value:
    return _pad(call, x, list(amounts), mode == "constant", fill or 0.0)


@rule(aten.constant_pad_nd.default)
def constant_pad_nd(call: Call, x: Value, amounts: Any, fill: float = 0) -> Value:
    return _pad(call, x, list(amounts), constant=True, fill=fill)
