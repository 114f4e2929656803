"""LAMP: layer-adaptive magnitude (Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.criteria.base import Criterion, total
from hwprune.layers.part import Part, producers
from hwprune.layers.statistics import LayerStatistics


@final
class Lamp(Criterion):
    """w^2 over the sum of all squares of its layer that are not smaller.

    Inside a layer the order is that of magnitude; across layers the scores are comparable (scope ``global``). An axis takes
    the squared norms of its indices for the w^2.
    """

    name = "lamp"
    ranking = "magnitude"
    description = "square over the sum of the squares that are not smaller: comparable across layers"

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        return _lamp(weight.detach().double().square().reshape(-1)).reshape(weight.shape)

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return _lamp(total(part.slices().double().square().sum(dim=1) for part in producers(parts)))


def _lamp(squares: torch.Tensor) -> torch.Tensor:
    ordered, order = squares.sort(stable=True)
    not_smaller = ordered.flip(0).cumsum(dim=0).flip(0)
    # Equal squares share the sum from the first of them on.
    first = torch.searchsorted(ordered, ordered)
    scores = ordered / not_smaller[first].clamp(min=torch.finfo(squares.dtype).tiny)
    return torch.empty_like(scores).scatter_(0, order, scores)
