"""The proof that a cut model computes what the masked one computes."""

from __future__ import annotations

import torch

from hwprune.workload.workload import first_tensor

ORDER_TOLERANCE = 1e-4
"""Largest difference that another order of channels may make, by rounding alone."""
CUT_TOLERANCE = 1e-5
"""Largest difference between cut and masked outputs, relative to the largest output, in float32."""
CUT_TOLERANCE_DOUBLE = 1e-9
"""The same in float64, asked only when float32 rounding leaves a doubt."""


@torch.no_grad()
def relative_difference(a: torch.nn.Module, b: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    first, second = first_tensor(a(*inputs)), first_tensor(b(*inputs))
    scale = float(second.abs().max())
    return float((first - second).abs().max()) / max(scale, 1e-30)
