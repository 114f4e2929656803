"""Which trials are confirmed: the finalists."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hwprune.records import pareto
from hwprune.records.trial import Trial
from hwprune.searching.constraints import Constraints

MOST_FINALISTS = 8


def objectives(trial: Trial) -> tuple[float, float]:
    """(drop, speedup) as the search measured them."""
    assert trial.drop is not None and trial.speedup is not None
    return trial.drop, trial.speedup.value


def rank_objectives(trial: Trial) -> tuple[float, float]:
    """(divergence, speedup): what decides who is a finalist.

    The drop on a thousand examples is good to half a point or so; a front by it keeps the lucky and loses the rest. The
    divergence of the same outputs ranks candidates by something that is not noise.
    """
    drop, speedup = objectives(trial)
    return drop if trial.divergence is None else trial.divergence.value, speedup


def finalists(
    trials: Sequence[Trial],
    constraints: Constraints,
    most: int = MOST_FINALISTS,
    dense: float = 1.0,
    *,
    repaired: bool = False,
) -> list[Trial]:
    """Who is measured again: the front, then what is just behind it, at most ``most``.

    Trials that measured slower than dense are left out; a front that is too long is thinned evenly by speedup.
    The margins around the constraints let in who may meet them on the test split.
    """
    loose = constraints.loosened(dense, repaired=repaired)
    good = [
        t for t in trials
        if t.measured and objectives(t)[1] > 1.0 and t.recipe.choices and all(v <= 0 for v in loose.of(t).values())
    ]  # fmt: skip
    chosen: list[Trial] = []
    for layer in pareto.layers(good, rank_objectives):
        room = most - len(chosen)
        if room <= 0:
            break
        chosen += layer if len(layer) <= room else evenly_spaced(layer, room)
    return sorted(chosen, key=lambda t: objectives(t)[1])


def promoted(
    trials: Sequence[Trial], done: Collection[int], constraints: Constraints, dense: float, *, repaired: bool = False
) -> list[Trial]:
    """Who takes the places of finalists that fell off the front when they were measured again; at most as many as fell.

    Args:
        trials: with the speedups of their last measurement; those that failed are not among them.
        done: numbers of those that were measured again.
    """
    front_now = finalists(trials, constraints, len(trials), dense, repaired=repaired)
    front_now = pareto.non_dominated(front_now, rank_objectives)
    room = MOST_FINALISTS - sum(t.number in done for t in front_now)
    fresh = [t for t in front_now if t.number not in done]
    if room <= 0 or not fresh:
        return []
    return fresh if len(fresh) <= room else evenly_spaced(fresh, room)


def evenly_spaced(layer: list[Trial], count: int) -> list[Trial]:
    """``count`` of them, the ends included, evenly spaced in speedup."""
    if count == 1:
        return [layer[-1]]
    low, high = objectives(layer[0])[1], objectives(layer[-1])[1]
    rest = layer[1:-1]
    chosen = [layer[0], layer[-1]]
    for step in range(1, count - 1):
        wanted = low + (high - low) * step / (count - 1)
        nearest = min(rest, key=lambda t: abs(objectives(t)[1] - wanted))
        rest.remove(nearest)
        chosen.append(nearest)
    return sorted(chosen, key=lambda t: objectives(t)[1])
