"""Which trials are confirmed: the finalists."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

from hwprune.records import pareto
from hwprune.records.trial import Trial
from hwprune.searching.constraints import Constraints
from hwprune.searching.final.belief import SURE, DropBelief

MOST_FINALISTS = 12
FARTHEST, FEW = 2.0, 3
"""Believed drop over the worst one that matters beyond which a candidate is ruined; only where there are fewer others than that
is it worth a measurement."""
GENTLE = 2
"""Places kept for candidates whose drop is below what the split can tell: without them nothing may be left for a small limit."""
MOST_PROMOTED = 4
"""Candidates that are measured in a later round."""
STEP = 0.1
"""Share of the worst drop that matters by which two candidates of one speed differ, so that both are worth a measurement."""
WIDE = math.log(1.8)
"""Gap in log speedup that is not left where a candidate of the front lies in it: a factor of two, less what measuring again may
add to it."""
FINE, COARSE = math.log(1.03), math.log(1.1)
"""Gaps in log speedup that are not filled any more: between points that differ in drop, and between those that only differ in how
close they are to dense."""


def objectives(trial: Trial) -> tuple[float, float]:
    """(drop, speedup) as the search measured them."""
    assert trial.drop is not None and trial.speedup is not None
    return trial.drop, trial.speedup.value


def rank_objectives(trial: Trial) -> tuple[float, float]:
    """(divergence, speedup): what ranks trials where nothing is believed of drops yet."""
    drop, speedup = objectives(trial)
    return drop if trial.divergence is None else trial.divergence.value, speedup


def finalists(
    trials: Sequence[Trial],
    constraints: Constraints,
    belief: DropBelief,
    most: int = MOST_FINALISTS,
    dense: float = 1.0,
    *,
    repaired: bool = False,
) -> list[Trial]:
    """Who is measured again: the front in (believed drop, speedup), evenly spread over the logarithm of the speedup.

    Points between which nobody can tell a difference in drop are dominated by the fastest of them; a few of the slower ones,
    which are closer to dense, fill what gaps are left. Trials that measured slower than dense are left out.

    Args:
        repaired: finalists get a more thorough compensation than trials: what they may reach counts, not what they have.
    """
    good = eligible(trials, constraints, belief, dense, repaired=repaired)
    floor = belief.floor
    front = pareto.non_dominated(good, lambda t: (belief.drop(t), objectives(t)[1]))
    told = pareto.non_dominated(front, lambda t: (max(belief.drop(t), floor), objectives(t)[1]))
    steps = _in_drops(belief)
    chosen = spread([], told, most - GENTLE, FINE, steps)
    chosen = spread(chosen, [t for t in front if belief.drop(t) < floor], len(chosen) + GENTLE, COARSE)
    chosen = spread(chosen, told, most, FINE, steps)
    chosen = spread(chosen, front, most, COARSE)
    if len(chosen) < most:  # who is just behind the front may come to lie on it when all are measured again
        behind = pareto.layers(good, lambda t: (belief.drop(t), objectives(t)[1]), most=3)[1:]
        for layer in behind:
            chosen = spread(chosen, layer, most, COARSE)
    return _bridged(chosen, front, most)


def _bridged(chosen: Sequence[Trial], front: Sequence[Trial], most: int) -> list[Trial]:
    """Sorted by speed, with a candidate of the front in every gap of more than `WIDE` that one lies in.

    Its place is that of the finalist which is nearest to its neighbours.
    """

    def logs(trial: Trial) -> float:
        return math.log(objectives(trial)[1])

    found = sorted(chosen, key=logs)
    for _ in range(len(front)):
        wide = [
            (logs(upper) - logs(lower), min(between, key=lambda t: abs(2 * logs(t) - logs(lower) - logs(upper))))
            for lower, upper in pairwise(found)
            if logs(upper) - logs(lower) > WIDE
            and (between := [t for t in front if logs(lower) + FINE < logs(t) < logs(upper) - FINE])
        ]
        if not wide:
            break
        bridge = max(wide, key=lambda one: one[0])[1]
        found = sorted([*found, bridge], key=logs)
        if len(found) > most:
            widths = {place: logs(found[place + 1]) - logs(found[place - 1]) for place in range(1, len(found) - 1)}
            place = min((place for place in widths if found[place] is not bridge), key=lambda place: widths[place], default=0)
            if not place or widths[place] > WIDE:  # else that would be the next gap
                found.remove(bridge)
                break
            del found[place]
    return found


def eligible(
    trials: Sequence[Trial], constraints: Constraints, belief: DropBelief, dense: float = 1.0, *, repaired: bool = False
) -> list[Trial]:
    """Trials that are faster than dense and may meet the constraints.

    The limit on the drop is held against what is surely met (`belief.SURE`). Where the split is too small for that to be said of
    any, those whose believed drop meets it stay.
    """
    loose = constraints.loosened(dense, repaired=repaired)
    good = [
        t for t in trials
        if t.measured and objectives(t)[1] > 1.0 and t.recipe.choices
        and all(v <= 0 for name, v in loose.of(t).items() if name != "drop")
    ]  # fmt: skip
    if constraints.max_drop is None:
        near = [t for t in good if belief.drop(t) <= FARTHEST * belief.limits.reference[0]]
        return near if len(near) >= FEW else good
    if repaired:
        return [t for t in good if (t.drop or 0.0) <= (loose.max_drop or math.inf)]
    return meeting(good, constraints.max_drop, belief)


def meeting(trials: Sequence[Trial], limit: float, belief: DropBelief) -> list[Trial]:
    """Those that surely have a drop of at most ``limit``; if none does, those that are believed to; else those that scored so."""
    surely = [t for t in trials if belief.sure(t, limit) >= SURE]
    believed = surely or [t for t in trials if belief.drop(t) <= limit]
    return believed or [t for t in trials if objectives(t)[0] <= limit]


def promoted(
    trials: Sequence[Trial],
    done: Collection[int],
    constraints: Constraints,
    belief: DropBelief,
    dense: float,
    *,
    repaired: bool = False,
) -> list[Trial]:
    """Who takes the places of finalists that fell off the front when they were measured again; at most as many as fell.

    Args:
        trials: with the speedups of their last measurement; those that failed are not among them.
        done: numbers of those that were measured again.
    """
    chosen = finalists(trials, constraints, belief, MOST_FINALISTS, dense, repaired=repaired)
    front_now = pareto.non_dominated(chosen, lambda t: (belief.drop(t), objectives(t)[1]))
    fresh = [t for t in front_now if t.number not in done]
    standing = [t for t in front_now if t.number in done]
    return spread(standing, fresh, len(standing) + MOST_PROMOTED, COARSE, _in_drops(belief))[len(standing) :]


Steps = Callable[[Trial], float]
"""A trial's drop, in steps of which one is worth a point of its own."""


def _in_drops(belief: DropBelief) -> Steps:
    step = max(belief.floor, STEP * belief.limits.reference[0])
    return lambda trial: belief.drop(trial) / step


def spread(
    chosen: Sequence[Trial], candidates: Sequence[Trial], most: int, least: float, steps: Steps = lambda _trial: 0.0
) -> list[Trial]:
    """``chosen`` and candidates, each the one farthest from all before it, until no gap of ``least`` is filled.

    The fastest and the slowest candidate come first.

    Args:
        least: in log speedup; a step in drop is as far. Of two that are as fast as each other, the second is worth a place where
            it costs far less.
    """

    def away(trial: Trial) -> float:
        return min((_distance(trial, other, least, steps) for other in found), default=math.inf)

    found = list(chosen)
    rest = [t for t in candidates if all(t.number != other.number for other in found)]
    ends = sorted(rest, key=lambda t: objectives(t)[1])
    for end in (ends[-1:], ends[:1]):
        for trial in end:
            if len(found) < most and trial in rest and away(trial) >= least:
                found.append(trial)
                rest.remove(trial)
    while rest and len(found) < most:
        farthest = max(rest, key=away)
        if away(farthest) < least:
            break
        found.append(farthest)
        rest.remove(farthest)
    return found


def _distance(trial: Trial, other: Trial, least: float, steps: Steps) -> float:
    faster = abs(math.log(objectives(trial)[1]) - math.log(objectives(other)[1]))
    return max(faster, least * abs(steps(trial) - steps(other)))
