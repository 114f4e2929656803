"""Criteria from the activations that an axis carries, where layers read them: APoZ, mean activation, FLAP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.criteria.base import Criterion, total
from hwprune.layers.part import READS, Part
from hwprune.layers.statistics import LayerStatistics


@final
class Apoz(Criterion):
    """Share of activations that are not zero: 1 - APoZ (average percentage of zeros; Hu et al. 2016). Says something behind a
    ReLU only.
    """

    name = "apoz"
    ranking = "apoz"
    description = "share of activations that are not zero; axes only"
    needs = ("channel_zero",)
    on_weights = False
    kinds = (READS,)

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        raise self._no_weights()

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        scores = []
        for part, statistics in self._chosen(parts, READS):
            assert statistics.channel_zero is not None
            scores.append(1 - part.channels(statistics.channel_zero).mean(dim=1))
        return total(scores) / len(scores)


@final
class Activation(Criterion):
    """Mean absolute activation."""

    name = "activation"
    ranking = "activation"
    description = "mean absolute activation; axes only"
    needs = ("channel_abs",)
    on_weights = False
    kinds = (READS,)

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        raise self._no_weights()

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        scores = []
        for part, statistics in self._chosen(parts, READS):
            assert statistics.channel_abs is not None
            scores.append(part.channels(statistics.channel_abs).mean(dim=1))
        return total(scores) / len(scores)


@final
class Flap(Criterion):
    """Variance of the activation times the squared norm of the weights that read it (FLAP, "WIFV": An et al. 2024).

    A constant activation costs nothing: its mean can go into the bias (compensation ``bias``).
    """

    name = "flap"
    ranking = "flap"
    description = "variance of the activation * squared norm of its weights; axes only"
    needs = ("channel_variance",)
    on_weights = False
    kinds = (READS,)

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        raise self._no_weights()

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        scores = []
        for part, statistics in self._chosen(parts, READS):
            assert statistics.channel_variance is not None
            w = part.tensor.detach().float()
            squares = w.reshape(part.groups, w.shape[0] // part.groups, w.shape[1], -1).square().sum(dim=(1, 3))
            scores.append(part.channels(squares.reshape(-1) * statistics.channel_variance).sum(dim=1))
        return total(scores)
