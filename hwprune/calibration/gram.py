"""Running sums: Gram matrices and channel statistics of the layers' inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch

from hwprune.errors import WorkloadError
from hwprune.layers.layer import Layer
from hwprune.layers.statistics import LayerStatistics
from hwprune.second_order.products import gram

MIN_ROWS = 8192
"""Positions that every layer's statistics see, if the data has as many."""
ROWS_PER_COLUMN = 12
"""Positions for each column of a Gram matrix: with n of them its noise is about sqrt(d / n) (methods 8.1.7 asks for 10)."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Statistics of every layer by its weight's name, and the influence of every branch by its name."""

    layers: Mapping[str, LayerStatistics]
    influence: Mapping[str, float] = field(default_factory=dict)
    examples: int = 0

    def merged(self, other: Calibration) -> Calibration:
        """The statistics of both; where both have a field, that of ``other`` wins."""
        names = dict.fromkeys([*self.layers, *other.layers])
        empty = LayerStatistics()
        both = {}
        for name in names:
            old, new = self.layers.get(name, empty), other.layers.get(name, empty)
            fields = {f.name: getattr(new, f.name) for f in dataclasses.fields(new) if getattr(new, f.name) is not None}
            if new.covariance is None:
                fields.pop("rows")
            both[name] = dataclasses.replace(old, **fields)
        return Calibration(both, {**self.influence, **other.influence}, max(self.examples, other.examples))


def column_count(layer: Layer) -> int:
    columns = 1
    for size in layer.matrix.shape[1:]:
        columns *= size
    return columns


class GramSums:
    """Running sums of one Gram matrix and of the channels that feed it."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.rows = 0
        self.channel_rows = 0
        self.gram: Any = 0.0
        self.sum: Any = 0.0
        self.shift: Any = 0.0
        self.channel_shift: Any = 0.0
        self.channel: Any = 0.0

    def add(self, x: torch.Tensor, share: float, generator: torch.Generator, allowed: torch.Tensor | None = None) -> None:
        """``share``: of all examples, in this batch; ``allowed``: positions that matter."""
        target = max(MIN_ROWS, ROWS_PER_COLUMN * (column_count(self.layer) + 1))
        columns = self.layer.columns(x, ceil(target * share), generator, allowed).float()
        if not self.rows:  # about the mean, so that a large one does not swallow the covariance
            self.shift = columns.mean(dim=1, keepdim=True)
        self.rows += columns.shape[1]
        columns = columns - self.shift
        self.gram = self.gram + gram(columns)
        self.sum = self.sum + columns.sum(dim=1, dtype=torch.float64)
        if self.layer.matrix.kind == "conv":
            drawn = self.layer.sampled_channels(x, ceil(MIN_ROWS * share), generator).float()
        else:
            drawn = columns[0] + self.shift[0]
        if not self.channel_rows:
            self.channel_shift = drawn.mean(dim=0)
        self.channel_rows += len(drawn)
        moved = drawn - self.channel_shift
        sums = [moved.sum(dim=0), moved.square().sum(dim=0), drawn.abs().sum(dim=0), (drawn == 0).sum(dim=0).float()]
        self.channel = self.channel + torch.stack(sums).double()

    def statistics(self) -> LayerStatistics:
        offset = self.sum / self.rows  # of the mean from the shift
        covariance = self.gram.double() / self.rows - offset[:, :, None] * offset[:, None, :]
        if not bool(torch.isfinite(covariance).all()):
            raise WorkloadError(
                f"the input of layer {self.layer.name} holds NaN or infinity on the calibration data: "
                "check the model's weights, or leave out the examples that overflow"
            )
        mean = self.shift[:, 0].double() + offset
        square = covariance.diagonal(dim1=1, dim2=2) + mean.square()
        first, second, absolute, zero = self.channel / self.channel_rows
        return LayerStatistics(
            groups=len(mean),
            rows=self.rows,
            weight_inputs=self.layer.matrix.shape[1],
            covariance=covariance.float().cpu(),
            mean=mean.float().cpu(),
            input_square=square.float().cpu(),
            channel_mean=(self.channel_shift.double() + first).float().cpu(),
            channel_variance=(second - first.square()).clamp(min=0).float().cpu(),
            channel_abs=absolute.float().cpu(),
            channel_zero=zero.float().cpu(),
        )
