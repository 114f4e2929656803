"""The final front: measured again in fresh processes, scored on the test split, dominated points dropped.

A front of noisy numbers is a collection of lucky ones, so nothing that the search measured is reported. Every
finalist is measured again in fresh processes (`hwprune.latency.fresh`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hwprune import front
from hwprune.measurement import Measurement
from hwprune.trial import Trial

MOST_FINALISTS = 8


@dataclass(frozen=True, slots=True)
class Confirmed:
    """One point of the final front."""

    trial: Trial
    metric: Measurement
    drop: float
    latency: Measurement
    speedup: Measurement
    split: str

    def to_json(self) -> dict[str, Any]:
        return {
            "trial": self.trial.number,
            "metric": self.metric.to_json(),
            "drop": self.drop,
            "latency": self.latency.to_json(),
            "speedup": self.speedup.to_json(),
            "params": self.trial.params,
            "macs": self.trial.macs,
            "size_bytes": self.trial.size_bytes,
            "split": self.split,
        }


def objectives(trial: Trial) -> tuple[float, float]:
    """(drop, speedup) as the search measured them."""
    assert trial.drop is not None and trial.speedup is not None
    return trial.drop, trial.speedup.value


def feasible(drop: float, speedup: float, max_drop: float | None, min_speedup: float | None) -> bool:
    return (max_drop is None or drop <= max_drop) and (min_speedup is None or speedup >= min_speedup)


def finalists(trials: Sequence[Trial], max_drop: float | None, min_speedup: float | None) -> list[Trial]:
    """Who is measured again: the front, then what is just behind it, at most `MOST_FINALISTS`.

    Trials that measured slower than dense are left out; a front that is too long is thinned evenly by speedup.
    The margins around the constraints let in who may meet them on the test split.
    """
    slack_drop = None if max_drop is None else max_drop + 0.01
    slack_speedup = None if min_speedup is None else min_speedup * 0.97
    good = [
        t for t in trials
        if t.measured and objectives(t)[1] > 1.0 and t.recipe.choices and feasible(*objectives(t), slack_drop, slack_speedup)
    ]  # fmt: skip
    chosen: list[Trial] = []
    for layer in front.layers(good, objectives):
        room = MOST_FINALISTS - len(chosen)
        if room <= 0:
            break
        chosen += layer if len(layer) <= room else _thin(layer, room)
    return sorted(chosen, key=lambda t: objectives(t)[1])


def _thin(layer: list[Trial], count: int) -> list[Trial]:
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


def final_front(points: Sequence[Confirmed], max_drop: float | None, min_speedup: float | None) -> list[Confirmed]:
    """What no other point dominates, slowest first: (drop on the final split, speedup measured again).

    Dense itself is a point, so one that is slower than dense, or not faster and worse, falls off.
    """
    faster = [p for p in points if p.speedup.ci_high > 1.0 and p.speedup.value > 1.0]
    fits = [p for p in faster if feasible(p.drop, p.speedup.value, max_drop, min_speedup)]
    return front.non_dominated(fits, lambda p: (p.drop, p.speedup.value))
