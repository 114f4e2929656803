"""Network slimming (Liu et al. 2017): the learned scale of the norm behind a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.criteria.base import Criterion, total
from hwprune.layers.part import SCALES, Part
from hwprune.layers.statistics import LayerStatistics


@final
class Slimming(Criterion):
    """abs(gamma) of the index, summed over the norms that carry the axis."""

    name = "slimming"
    ranking = "slimming"
    description = "absolute scale of the norm (batch norm and others); axes only"
    on_weights = False
    kinds = (SCALES,)

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        raise self._no_weights()

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return total(part.slices().float().abs().sum(dim=1) for part, _ in self._chosen(parts, SCALES))
