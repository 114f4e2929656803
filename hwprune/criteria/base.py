"""What a criterion is."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import torch

Statistics = Mapping[str, torch.Tensor]
"""What calibration learned of one layer, by name. Each criterion says in its docstring which names it reads."""


class Criterion(abc.ABC):
    """Scores for weights, and for the indices of an axis. High = keep."""

    name: str
    description: str
    needs: tuple[str, ...] = ()
    """Names it reads from the statistics."""
    ranking: str
    """Criteria of equal ``ranking`` order the single weights of a layer alike, so their masks are the same."""

    @abc.abstractmethod
    def scores(self, weight: torch.Tensor, statistics: Statistics | None = None) -> torch.Tensor:
        """One score a weight: same shape, float32 or wider, finite and >= 0 for finite weights."""

    @abc.abstractmethod
    def axis_scores(self, slices: Sequence[torch.Tensor], statistics: Statistics | None = None) -> torch.Tensor:
        """One score an index of an axis, shape (n,).

        ``slices``: for every producer (the layers that make the axis) a tensor (n, k), row i = the k weights
        that removing index i removes from it.
        """
