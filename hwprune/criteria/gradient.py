"""Criteria from gradients of the examples' losses: first order, Taylor, and diagonal curvature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.criteria.base import Criterion, total
from hwprune.layers.part import READS, Part, producers, readers
from hwprune.layers.statistics import LayerStatistics


@final
class Gradient(Criterion):
    """abs(w) * mean abs(g) (SNIP: Lee et al. 2019, with the gradients of each example); an axis takes the sum over its
    producer slices.
    """

    name = "gradient"
    ranking = "gradient"
    description = "abs(weight * gradient), averaged over examples"
    needs = ("grad_abs",)

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        absolute = self._statistics(statistics).grad_abs
        assert absolute is not None
        return weight.detach().float().abs() * absolute

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return total(
            part.slices(self.scores(part.tensor, self._statistics(part.statistics, part.parameter))).sum(dim=1)
            for part in producers(parts)
        )


@final
class Taylor(Criterion):
    """Mean over examples of (sum of w g over everything removed)^2 (Molchanov et al. 2019, equation 8, per example).

    For an axis the sum is taken where it is read: there it is exactly the first-order change of an example's loss when the
    index's activations become zero. Weights of one index that work against each other cancel, which `Obd` does not see.
    """

    name = "taylor"
    ranking = "fisher"
    description = "first-order change of the loss, squared, averaged over examples"
    needs = ("fisher", "taylor_in", "taylor_out")

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        fisher = self._statistics(statistics).fisher
        assert fisher is not None
        return weight.detach().float().square() * fisher

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        change = []
        for part in readers(parts) or producers(parts):
            statistics = self._statistics(part.statistics, part.parameter)
            assert statistics.taylor_in is not None and statistics.taylor_out is not None
            if part.kind == READS:
                change.append(part.channels(statistics.taylor_in).sum(dim=2))
            else:
                change.append(statistics.taylor_out[:, part.positions].sum(dim=2))
        return total(change).square().mean(dim=0)


@final
class Obd(Criterion):
    """w^2 F / 2 with the diagonal Fisher information F for the curvature (Optimal Brain Damage: LeCun et al. 1990).

    An axis takes the sum over its producer slices: each weight on its own.
    """

    name = "obd"
    ranking = "fisher"
    description = "weight^2 * diagonal Fisher / 2"
    needs = ("fisher",)

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        fisher = self._statistics(statistics).fisher
        assert fisher is not None
        return weight.detach().float().square() * fisher / 2

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return total(
            part.slices(self.scores(part.tensor, self._statistics(part.statistics, part.parameter))).sum(dim=1)
            for part in producers(parts)
        )
