"""Which points of a front a limit on the drop allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class ToldPoint(Protocol):
    """What a point of a front has, wherever it comes from: of a finished search, or of a record."""

    @property
    def drop(self) -> float: ...

    @property
    def told_drop(self) -> float | None: ...

    @property
    def told_high(self) -> float | None: ...


S = TypeVar("S", bound=ToldPoint)


def within(points: Sequence[S], limit: float | None) -> list[S]:
    """The points that surely have a drop of at most ``limit``; if none does, those that are believed to."""
    if limit is None:
        return list(points)
    surely = [p for p in points if _first(p.told_high, p.drop) <= limit]
    return surely or [p for p in points if _first(p.told_drop, p.drop) <= limit]


def _first(told: float | None, scored: float) -> float:
    """Records of earlier versions know the score only."""
    return scored if told is None else told
