"""Complex numbers and Fourier transforms: linear, so zero stays zero along the dims that are not transformed."""

from __future__ import annotations

from typing import Any

import torch

from hwprune.structure.scope import Value
from hwprune.structure.torch.rules.table import Call, rule

aten = torch.ops.aten


def _transformed(call: Call, x: Value, dims: int | list[int]) -> Value:
    positions = {dim % len(x) for dim in ([dims] if isinstance(dims, int) else dims)}
    result = list(x.dims)
    for position in positions:
        call.freeze(x[position], "is transformed")
        result[position] = call.opaque(call.sizes[position], "is transformed")
    return Value(tuple(result), tuple(zero and position not in positions for position, zero in enumerate(x.zeros)))


@rule(aten._fft_r2c.default, aten._fft_c2r.default, aten._fft_c2c.default)
def fourier(call: Call, x: Value, dims: Any, *_: Any) -> Value:
    return _transformed(call, x, dims)


@rule(aten.view_as_complex.default)
def view_as_complex(call: Call, x: Value) -> Value:
    call.freeze(x[-1], "holds real and imaginary parts")
    return Value(x.dims[:-1], x.zeros[:-1])


@rule(aten.view_as_real.default)
def view_as_real(call: Call, x: Value) -> Value:
    return Value((*x.dims, call.opaque(2, "holds real and imaginary parts")), (*x.zeros, False))


@rule(aten.complex.default)
def combine(call: Call, real: Value, imaginary: Value) -> Value:
    dims = call.broadcast([real, imaginary])
    zeros = tuple(all(-p <= len(v) and v[p].size != 1 and v.zeros[p] for v in (real, imaginary)) for p in range(-len(dims), 0))
    return Value(dims, zeros)


@rule(aten.polar.default)
def polar(call: Call, length: Value, angle: Value) -> Value:
    dims = call.broadcast([length, angle])
    zeros = tuple(-p <= len(length) and length[p].size != 1 and length.zeros[p] for p in range(-len(dims), 0))
    return Value(dims, zeros)


@rule(aten.real.default, aten.imag.default, aten.angle.default, aten.conj.default, aten._conj.default)
@rule(aten.conj_physical.default, aten._conj_physical.default, aten.resolve_conj.default, aten.resolve_neg.default)
@rule(aten.sgn.default)
def part(call: Call, x: Value) -> Value:
    return Value(x.dims, x.zeros)
