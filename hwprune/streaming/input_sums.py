"""Sums over a linear layer's inputs, window by window, that make its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from hwprune.errors import WorkloadError
from hwprune.layers.statistics import LayerStatistics

NEEDS = frozenset(
    ("gram", "covariance", "mean", "input_square", "channel_mean", "channel_variance", "channel_abs", "channel_zero")
)
"""Fields of `LayerStatistics` that come of it."""


@dataclass(slots=True)
class InputSums:
    """Sums over rows of inputs, d columns each.

    Attributes:
        shift: (d,) that is taken off first, so that a large mean does not swallow the covariance.
        rows: how many were added.
        gram: (d, d), of the shifted rows.
        total, absolute, zero: (d,) of the shifted rows, and of the rows as they are.
        cross: (d, d), of the dense model's rows (first dim) with these, neither shifted.
    """

    shift: torch.Tensor
    rows: int = 0
    gram: Any = 0.0
    total: Any = 0.0
    absolute: Any = 0.0
    zero: Any = 0.0
    cross: Any = 0.0

    def add(self, inputs: torch.Tensor, dense: torch.Tensor | None = None) -> None:
        """Add (..., d) inputs, and what the dense model's layer is given in their place."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        moved = x - self.shift
        self.rows += len(x)
        self.gram = self.gram + moved.T @ moved
        self.total = self.total + moved.sum(dim=0, dtype=torch.float64)
        self.absolute = self.absolute + x.abs().sum(dim=0, dtype=torch.float64)
        self.zero = self.zero + (x == 0).sum(dim=0)
        if dense is not None:
            self.cross = self.cross + dense.reshape(x.shape).float().T @ x


def cross_of(sums: list[InputSums]) -> torch.Tensor:
    """(d, d) float64: mean product of the dense model's inputs (first dim) with these."""
    whole = reduce(_together, sums)
    found: torch.Tensor = whole.cross.double() / whole.rows
    return found


def statistics_of(sums: list[InputSums], name: str) -> LayerStatistics:
    """The statistics of everything that was added to several sums of one shift.

    Raises:
        WorkloadError: an input is NaN or infinite; ``name`` says of which layer.
    """
    whole = reduce(_together, sums)
    offset = whole.total / whole.rows
    covariance = whole.gram.double() / whole.rows - offset[:, None] * offset[None, :]
    if not bool(torch.isfinite(covariance).all()):
        raise WorkloadError(f"the input of {name} holds NaN or infinity on the calibration text")
    mean, variance = whole.shift.double() + offset, covariance.diagonal().clamp(min=0)
    return LayerStatistics(
        rows=whole.rows, weight_inputs=len(mean), covariance=covariance.float()[None], mean=mean.float()[None],
        input_square=(variance + mean.square()).float()[None], channel_mean=mean.float(), channel_variance=variance.float(),
        channel_abs=(whole.absolute / whole.rows).float(), channel_zero=(whole.zero / whole.rows).float(),
    )  # fmt: skip


def _together(one: InputSums, other: InputSums) -> InputSums:
    return InputSums(
        one.shift, one.rows + other.rows, one.gram + other.gram, one.total + other.total, one.absolute + other.absolute,
        one.zero + other.zero, one.cross + other.cross,
    )  # fmt: skip
