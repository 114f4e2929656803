"""FPGM (He et al. 2019): filters near the geometric median of their layer can be replaced by the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.criteria.base import Criterion, total
from hwprune.layers.part import Part, producers
from hwprune.layers.statistics import LayerStatistics


@final
class Fpgm(Criterion):
    """Sum of the distances to all other indices' producer slices: smallest at the geometric median."""

    name = "fpgm"
    ranking = "fpgm"
    description = "sum of distances to the other filters (geometric median); axes only"
    on_weights = False

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        raise self._no_weights()

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        squares = []
        for part in producers(parts):
            rows = part.slices().double()
            rows = rows - rows.mean(dim=0)  # distances stay, rounding shrinks
            lengths = rows.square().sum(dim=1)
            squares.append(lengths[:, None] + lengths - 2 * rows @ rows.T)
        distances = total(squares).clamp(min=0)
        distances.fill_diagonal_(0)
        return distances.sqrt().sum(dim=1)
