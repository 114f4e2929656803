"""Quantisation simulated in floating point."""

from __future__ import annotations

from typing import Any

from hwprune.structure.scope import Value
from hwprune.structure.torch.rules.table import Call, rule


@rule("hwprune::fake_quantize")
def fake_quantize(call: Call, x: Value, scale: Value, point: Value, _low: Any, _high: Any, axis: int) -> Value:
    """Scale and zero point are single, or go with the indices of ``axis``; zero is among the steps, so it stays zero."""
    for tensor in (scale, point):
        if len(tensor) == 1 and tensor[0].size > 1:
            call.unify(tensor[0], x[axis])
            if tensor.parameter is not None:  # a scale of zero would make 0 / 0; a weight of zero is enough
                call.unmasked.append((tensor.parameter, 0))
    return Value(x.dims, x.zeros)
