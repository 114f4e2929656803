"""The fastest models of a front whose perplexity, once they are repaired, rises by no more than its user allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from hwprune.common import formatting
from hwprune.language.phase_study import FrontTrial

TRIES = 3
"""Models that are pruned beyond those that are asked for, while faster ones are expected to keep the limit."""
REACH, TAUGHT_REACH = 1.5, 3.0
"""Divergence up to which trials are worth running, in the nats that perplexity may rise by: a model's divergence is 1.1 to 1.3
times the logarithm by which its perplexity rises (SmolLM2), a repair takes a tenth of it back, and a distillation half."""


@dataclass(frozen=True, slots=True)
class Drop:
    """What is allowed.

    Attributes:
        nats: by which the logarithm of perplexity may rise.
        dense: the dense model's perplexity of the held-out windows of trials.
    """

    nats: float
    dense: float

    @classmethod
    def of(cls, allowed: float, judged: float, dense: float) -> Drop:
        """From what perplexity may rise by where the dense model has ``judged``: on another text it is the same ratio."""
        return cls(math.log1p(allowed / judged), dense)

    def rise(self, perplexity: float) -> float:
        """Nats of a perplexity on the held-out windows."""
        return math.log(perplexity / self.dense)

    def nearest(self, front: Sequence[FrontTrial]) -> str:
        """In words, how near the limit a front comes before any repair."""
        rises = [self.rise(one.user_attrs["score"]["perplexity"]) for one in front]
        if not rises:
            return ""
        told = [formatting.percent(math.expm1(one)) for one in (min(rises), self.nats)]
        return f" (before repair the least cut one is {told[0]} above the dense perplexity, and {told[1]} are allowed)"

    def reach(self, *, taught: bool) -> float:
        """Divergence beyond which no trial is of use."""
        return (TAUGHT_REACH if taught else REACH) * self.nats


def fastest_within(
    front: Sequence[FrontTrial], drop: Drop, perplexity: Callable[[FrontTrial], float], count: int
) -> tuple[list[FrontTrial], list[FrontTrial]]:
    """The trials that keep the limit, fastest last, and those that turned out not to.

    What a repair makes of a trial is known when it has been done, so the fastest that is expected to keep the limit is repaired
    first; how far it was off corrects what is expected of the others.

    Args:
        front: fastest last.
        perplexity: repairs a trial, and tells its perplexity on the held-out windows.
        count: trials that are wanted: the fastest, and slower ones spread over the front. Others that were repaired on the way
            and keep the limit are there, too.
    """
    kept: dict[int, FrontTrial] = {}
    beyond: list[FrontTrial] = []
    factors: list[float] = []
    expected = {one.number: max(drop.rise(one.user_attrs["score"]["perplexity"]), 1e-9) for one in front}
    while len(kept) + len(beyond) < count + TRIES:
        factor = median(factors) if factors else 1.0
        tried = {*kept, *(one.number for one in beyond)}
        limits = [one for one in front if one.number not in tried and factor * expected[one.number] <= drop.nats]
        fastest = max((one.values[1] for one in kept.values()), default=0.0)
        faster = [one for one in limits if one.values[1] > fastest]
        if not faster:
            break
        rise = drop.rise(perplexity(faster[-1]))
        factors.append(rise / expected[faster[-1].number])
        if rise <= drop.nats:
            kept[faster[-1].number] = faster[-1]
        else:
            beyond.append(faster[-1])
    slower = [one for one in front if kept and one.values[1] < min(other.values[1] for other in kept.values())]
    for one in _spread(slower, count - len(kept)):
        if drop.rise(perplexity(one)) <= drop.nats:
            kept[one.number] = one
        else:
            beyond.append(one)
    return sorted(kept.values(), key=lambda one: one.values[1]), beyond


def _spread(slower: Sequence[FrontTrial], count: int) -> list[FrontTrial]:
    """So many of them, evenly over the logarithm of the speedup from dense to the fastest."""
    if count <= 0 or not slower:
        return []
    logs = [math.log(one.values[1]) for one in slower]
    wanted = [logs[-1] * (place + 1) / (count + 1) for place in range(count)]
    places = {min(range(len(logs)), key=lambda place: abs(logs[place] - one)) for one in wanted}
    return [slower[place] for place in sorted(places)]
