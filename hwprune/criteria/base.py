"""The interface of a criterion."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence

import torch

from hwprune.errors import UsageError
from hwprune.layers.part import Part
from hwprune.layers.statistics import LayerStatistics


class Criterion(abc.ABC):
    """Scores for weights, and for the indices of an axis. High = keep; finite and >= 0."""

    name: str
    description: str
    needs: tuple[str, ...] = ()
    """Fields of `LayerStatistics` that it reads."""
    ranking: str
    """Criteria of equal ``ranking`` order the single weights of a layer alike, so their masks are the same."""
    on_weights = True
    """Does it score single weights?"""
    kinds: tuple[str, ...] = ()
    """Kinds of parts that an axis must have for it; empty: any will do."""

    @abc.abstractmethod
    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        """One score a weight: (out, in / G, *kernel) like ``weight``, float32 or wider.

        Raises:
            UsageError: it scores no single weights, or statistics that it needs are missing.
        """

    @abc.abstractmethod
    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        """One score an index of an axis, shape (n,).

        ``parts``: everything that owns a slice of the axis; a single weight is `Part.of(weight)`.

        Raises:
            UsageError: parts or statistics that it needs are missing.
        """

    def unavailable(self, parts: Sequence[Part]) -> str | None:
        """The reason why it can't score an axis of these parts, or None; statistics aside."""
        missing = [kind for kind in self.kinds if all(part.kind != kind for part in parts)]
        return f"criterion {self.name}: no {_KINDS[missing[0]]} on this axis" if missing else None

    def _statistics(self, statistics: LayerStatistics | None, where: str = "this layer") -> LayerStatistics:
        """The statistics as given. Raises `UsageError` if something that is needed is missing."""
        missing = [*self.needs] if statistics is None else statistics.missing(self.needs)
        if not self.needs:
            return statistics or LayerStatistics()
        if missing or statistics is None:
            raise UsageError(
                f"criterion {self.name} needs statistics of {where} that were not collected: {', '.join(missing)}. "
                "Either the calibration data never reaches it, or they were not asked for"
            )
        return statistics

    def _chosen(self, parts: Iterable[Part], kind: str) -> list[tuple[Part, LayerStatistics]]:
        """The parts of a kind with their statistics."""
        matching = [part for part in parts if part.kind == kind]
        if not matching:
            raise UsageError(f"criterion {self.name}: no {_KINDS[kind]} on this axis")
        return [(part, self._statistics(part.statistics, part.parameter)) for part in matching]

    def _no_weights(self) -> UsageError:
        return UsageError(f"criterion {self.name} scores whole indices of an axis, not single weights")


_KINDS = {
    "makes": "layer that makes it",
    "reads": "linear or convolution layer that reads it",
    "scales": "norm with a learned scale",
    "other": "other tensor",
}


def total(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum over parts of scores (n,)."""
    return torch.stack(list(parts)).sum(dim=0)
