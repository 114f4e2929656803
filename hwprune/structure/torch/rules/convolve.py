"""Convolutions of one to three spatial dims, transposed ones too, with any number of groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hwprune.structure.dims import ONE, Dim, Product
from hwprune.structure.scope import Kept, Value
from hwprune.structure.torch.rules.table import Call, read_argument, rule, write_argument

aten = torch.ops.aten


def _pointwise(call: Call, weight: Value) -> list[bool]:
    """For each spatial dim: is every position on its own (kernel 1, stride 1, no padding)?"""
    count = len(weight) - 2
    strides, padding = (read_argument(call.node, name) for name in ("stride", "padding"))
    extra = [0] if "transpose" not in call.name else read_argument(call.node, "output_padding")
    if isinstance(padding, str):  # one of a kernel of 1 is none
        padding = [0]
    strides, padding, extra = (list(v) * count if len(v) == 1 else list(v) or [0] * count for v in (strides, padding, extra))
    sizes = [dim.size for dim in weight.dims[2:]]
    return [(size, s, p, e) == (1, 1, 0, 0) for size, s, p, e in zip(sizes, strides, padding, extra, strict=True)]


def _convolve(call: Call, x: Value, weight: Value, bias: Value | None, groups: int, transposed: bool) -> Value:
    for dim in weight.dims[2:]:
        call.freeze(dim, "kernel position")
        call.space.tag(dim, "position")
    channel = len(x) - len(weight.dims[2:]) - 1  # an unbatched input has no dim 0
    alone = _pointwise(call, weight)
    for dim, passes in zip(x.dims[channel + 1 :], alone, strict=True):
        if not passes:
            call.freeze(dim, "position")
    group = call.space.leaf(groups)
    if transposed:  # weight: (in, out / groups, kernel...)
        per_group = weight[1]
        call.contract(x, channel, weight, 0)
        if groups > 1:
            call.unify(weight[0], Product((group, call.space.leaf(weight[0].size // groups))))
        out: Dim = Product((group, per_group))
    else:  # weight: (out, in / groups, kernel...)
        inner = call.space.resolve(Product((group, weight[1])))
        call.contract(x, channel, Value((inner,), (weight.zeros[1],)), 0)
        if groups > 1:
            call.unify(weight[0], Product((group, call.space.leaf(weight[0].size // groups))))
        out = weight[0]
    out = call.space.resolve(out)
    if bias is not None:
        call.unify(bias[0], out)
    call.space.tag(x[channel], "conv_in")
    call.space.tag(out, "conv_out")
    if groups > 1:
        depthwise = weight[1].size == 1
        call.space.tag(group, "depthwise" if depthwise else "group")

        if not isinstance(read_argument(call.node, "groups"), int):
            call.freeze(group, "the number of groups is computed at run time")

        def edit(node: fx.Node, kept: Kept) -> None:
            if kept(group) != group.size:
                write_argument(node, "groups", kept(group))

        call.on_cut(edit)
    spatial = tuple(
        dim if passes else ONE if size == 1 else call.opaque(size, "position")
        for dim, passes, size in zip(x.dims[channel + 1 :], alone, call.sizes[channel + 1 :], strict=True)
    )
    # Each output (each input, if transposed) meets one filter of the other side.
    call.macs(*x.dims[:channel], *(x.dims[channel + 1 :] if transposed else spatial), *weight.dims)
    leading = tuple(zero and bias is None for zero in x.zeros[:channel])
    out_zero = weight.zeros[1 if transposed else 0] and (bias is None or bias.zeros[0])
    places = (passes and zero and bias is None for passes, zero in zip(alone, x.zeros[channel + 1 :], strict=True))
    return Value((*x.dims[:channel], out, *spatial), (*leading, out_zero, *places))


@rule(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding
)
def conv(call: Call, x: Value, weight: Value, bias: Value | None, stride: Any, padding: Any, dilation: Any, groups: int) -> Value:
    return _convolve(call, x, weight, bias, groups, transposed=False)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(
    call: Call,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Value:
    return _convolve(call, x, weight, bias, groups, transposed=True)
