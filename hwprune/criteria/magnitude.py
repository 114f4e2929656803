"""Magnitude: small weights matter least (LeCun et al. 1990 as the baseline; Han et al. 2015; Li et al. 2017 for filters)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.criteria.base import Criterion, total
from hwprune.layers.part import Part, producers
from hwprune.layers.statistics import LayerStatistics


@final
class L1(Criterion):
    """abs(w); an index scores the sum over all its producer slices (Li et al. 2017, the filter's L1 norm)."""

    name = "l1"
    ranking = "magnitude"
    description = "absolute value; sum of absolute values for an axis"

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        return weight.detach().float().abs()

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return total(part.slices().float().abs().sum(dim=1) for part in producers(parts))


@final
class L2(Criterion):
    """w^2; an index scores the L2 norm over all its producer slices.

    On single weights it ranks as `L1` does, so there a search treats the two as one.
    """

    name = "l2"
    ranking = "magnitude"
    description = "square; L2 norm over all producer slices for an axis"

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        return weight.detach().float().square()

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return total(part.slices().float().square().sum(dim=1) for part in producers(parts)).sqrt()
