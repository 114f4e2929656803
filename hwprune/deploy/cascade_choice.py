"""Which two models to run one after the other, and from which confidence the first one's answer stands.

The threshold of a pair is chosen on some folds of the validation examples and judged on the others: chosen and judged on the same
ones, the best of many pairs and thresholds would look better than it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray[tuple[int], np.dtype[np.float64]]
FOLDS, SEED = 5, 0
NOBODY = 2.0
"""A threshold that no probability reaches."""
ROUNDING = 1e-9
TIGHTER = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of the limit with which thresholds are chosen, until what the other folds say keeps the limit."""


@dataclass(frozen=True, slots=True, eq=False)
class CascadeStep:
    """A model that may be one of the two.

    Attributes:
        key: its name.
        seconds: latency of one example.
        right: score of each validation example, larger is better.
        sure: probability of its answer for each of them.
        drop: what is told of it alone; None: what its scores say beside the dense model's.
    """

    key: str
    seconds: float
    right: Array
    sure: Array
    drop: float | None = None

    def alone(self, dense: Array) -> float:
        """Its drop against the dense model, whose scores are given."""
        return float(dense.mean() - self.right.mean()) if self.drop is None else self.drop


@dataclass(frozen=True, slots=True)
class CascadePlan:
    """Two models and a threshold.

    Attributes:
        threshold: confidence from which the answer of ``first`` stands.
        drop: of the mean score against the dense model's, as folds that the threshold was not chosen on say.
        seconds: mean of an example, likewise.
        exits: share of examples that end at ``first``, likewise.
    """

    first: str
    second: str
    threshold: float
    drop: float
    seconds: float
    exits: float


@dataclass(frozen=True, slots=True)
class Wish:
    """What a cascade must keep.

    Attributes:
        max_drop: of the mean score; None: no limit, and ``max_seconds`` is given.
        max_seconds: of an example in the mean.
        worst_seconds: of an example that goes through both.
    """

    max_drop: float | None = None
    max_seconds: float | None = None
    worst_seconds: float | None = None


def pairs_of(steps: Sequence[CascadeStep]) -> list[tuple[CascadeStep, CascadeStep]]:
    """All pairs of models of which the first is the faster one."""
    return [(first, second) for first, second in itertools.permutations(steps, 2) if first.seconds < second.seconds]


def plans(pairs: Sequence[tuple[CascadeStep, CascadeStep]], dense: Array, wish: Wish) -> list[CascadePlan]:
    """A plan for each pair that keeps the wishes, the best first: the fastest, or with a limit of time alone the least drop.

    Args:
        pairs: of which the second one's seconds come on top of the first one's.
        dense: scores of the dense model.
    """
    found = []
    for first, second in pairs:
        if wish.worst_seconds is not None and first.seconds + second.seconds > wish.worst_seconds:
            continue
        plan = _of_pair(first, second, dense, wish)
        if plan is not None:
            found.append(plan)
    return sorted(found, key=(lambda p: (p.seconds, p.drop)) if wish.max_drop is not None else (lambda p: (p.drop, p.seconds)))


def curve(first: CascadeStep, second: CascadeStep, dense: Array) -> Iterator[tuple[float, float, float]]:
    """(threshold, drop, mean seconds) for each number of examples that end at the first model, none to all."""
    order = np.argsort(-first.sure, kind="stable")
    gain = np.concatenate([[0.0], np.cumsum((first.right - second.right)[order])])
    count = len(order)
    drops = dense.mean() - (second.right.sum() + gain) / count
    confident = first.sure[order]
    for exits in range(count + 1):
        if 0 < exits < count and confident[exits] == confident[exits - 1]:
            continue  # no threshold tells them apart
        yield _between(confident, exits), float(drops[exits]), first.seconds + (1 - exits / count) * second.seconds


def _between(confident: Array, exits: int) -> float:
    """A threshold that lets so many of the examples, sorted from the surest, end."""
    if exits == 0:
        return NOBODY
    if exits == len(confident):
        return 0.0
    return float(confident[exits - 1] + confident[exits]) / 2


def _of_pair(first: CascadeStep, second: CascadeStep, dense: Array, wish: Wish) -> CascadePlan | None:
    folds = np.random.default_rng(SEED).permutation(len(dense)) % FOLDS
    own = second.alone(dense)
    room = None if wish.max_drop is None else wish.max_drop - own  # for what stopping early loses beside the second model
    if room is not None and room < -ROUNDING:
        return None
    for share in TIGHTER if room is not None else (1.0,):
        limit = None if room is None else share * room
        threshold = _threshold(first, second, wish, limit)
        if threshold is None:
            return None
        exits = np.zeros(len(dense), dtype=bool)
        for fold in range(FOLDS):
            inside, outside = folds != fold, folds == fold
            own_threshold = _threshold(_part(first, inside), _part(second, inside), wish, limit)
            exits[outside] = first.sure[outside] >= (NOBODY if own_threshold is None else own_threshold)
        lost = np.where(exits, second.right - first.right, 0.0)
        seconds = first.seconds + float((~exits).mean()) * second.seconds
        # The upper end of its interval, as for single models: the best of many pairs is the luckiest one, too.
        surely = float(lost.mean() + 1.959964 * lost.std(ddof=1) / len(lost) ** 0.5)
        if (room is None or surely <= room + ROUNDING) and (wish.max_seconds is None or seconds <= wish.max_seconds):
            return CascadePlan(first.key, second.key, threshold, own + float(lost.mean()), seconds, float(exits.mean()))
    return None


def _threshold(first: CascadeStep, second: CascadeStep, wish: Wish, room: float | None) -> float | None:
    """The threshold that is best for these examples: the fastest that loses no more than ``room`` beside the second model."""
    # Pairs of which one is never used are no pairs.
    rows = [row for row in curve(first, second, second.right) if 0 < row[0] < NOBODY]
    if room is not None:
        fits = [row for row in rows if row[1] <= max(room, 0.0) + ROUNDING]
        return min(fits, key=lambda row: (row[2], row[1]))[0] if fits else None
    assert wish.max_seconds is not None
    fits = [row for row in rows if row[2] <= wish.max_seconds]
    return min(fits, key=lambda row: (row[1], row[2]))[0] if fits else None


def _part(step: CascadeStep, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> CascadeStep:
    return CascadeStep(step.key, step.seconds, step.right[chosen], step.sure[chosen])
