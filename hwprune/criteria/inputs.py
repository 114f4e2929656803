"""Criteria that weigh weights with the norms of what they are multiplied with: Wanda and RIA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.criteria.base import Criterion, total
from hwprune.layers.part import Part, grouped, producers, readers
from hwprune.layers.statistics import LayerStatistics


def _norms(statistics: LayerStatistics) -> torch.Tensor:
    """(G, 1, d): root mean square of every column (a constant factor besides the paper's L2 norm)."""
    assert statistics.input_square is not None
    return statistics.input_square.float().sqrt()[:, None]


def _of_axis(criterion: Criterion, parts: Sequence[Part]) -> torch.Tensor:
    """Sum of single scores where the axis is read; where it is not, over its producers."""
    return total(
        part.slices(criterion.scores(part.tensor, part.statistics)).sum(dim=1) for part in readers(parts) or producers(parts)
    )


@final
class Wanda(Criterion):
    """abs(w_ij) * norm of input column j (Sun et al. 2024); columns are (input channel, kernel position).

    The paper compares within an output row: pattern ``unstructured:row`` (or N:M).
    """

    name = "wanda"
    ranking = "wanda"
    description = "abs(weight) * norm of its input; made for unstructured:row and N:M"
    needs = ("input_square",)

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        layer_statistics = self._statistics(statistics)
        return (grouped(weight.detach().float(), layer_statistics.groups).abs() * _norms(layer_statistics)).reshape(weight.shape)

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return _of_axis(self, parts)


@final
class Ria(Criterion):
    """Relative importance and activation (Zhang et al. 2024): (abs(w) / column sum + abs(w) / row sum) * norm^(1/2)."""

    name = "ria"
    ranking = "ria"
    description = "abs(weight) relative to its row and column, * norm of its input^0.5"
    needs = ("input_square",)
    power = 0.5

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        layer_statistics = self._statistics(statistics)
        w = grouped(weight.detach().float(), layer_statistics.groups).abs()
        tiny = torch.finfo(w.dtype).tiny
        relative = w / w.sum(dim=1, keepdim=True).clamp(min=tiny) + w / w.sum(dim=2, keepdim=True).clamp(min=tiny)
        return (relative * _norms(layer_statistics) ** self.power).reshape(weight.shape)

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return _of_axis(self, parts)
