"""Confirmed points and the final front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hwprune.records import pareto
from hwprune.records.measurement import Measurement, first_targets
from hwprune.records.trial import Trial
from hwprune.searching.constraints import Constraints
from hwprune.searching.final.belief import SURE
from hwprune.searching.result import FrontPoint


class DerivedTrials(NamedTuple):
    """Trials that were made of others by training or quantising, with their files, and what the user should know of it."""

    trials: Sequence[Trial]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """One point of the final front."""

    trial: Trial
    metric: Measurement
    drop: float
    latency: Measurement
    speedup: Measurement
    split: str
    told_drop: float | None = None
    """What validation and all trials together say of the drop: what points are chosen by. None: its own score says all."""
    told_high: float | None = None
    """The drop that the true one is below with `belief.SURE`, by the same."""
    sure: float | None = None
    """Probability, before the final split was looked at, that a limit on the drop is met; None: there is no limit."""
    paired_drop: Measurement | None = None
    """The drop on the final split with its interval; nothing is chosen by it."""
    footprint: Mapping[str, Any] = field(default_factory=dict)
    """Memory and energy, see `hwprune.latency.fresh.footprint`; seconds by layer, and what the runtime made of the model."""

    @property
    def choice_drop(self) -> float:
        """The drop that points are chosen by."""
        return self.drop if self.told_drop is None else self.told_drop

    def to_json(self) -> dict[str, Any]:
        return {
            "trial": self.trial.number,
            "metric": self.metric.to_json(),
            "drop": self.drop,
            **({} if self.paired_drop is None else {"paired_drop": self.paired_drop.to_json()}),
            "told_drop": self.choice_drop,
            "told_high": self.choice_drop if self.told_high is None else self.told_high,
            **({} if self.sure is None else {"sure": self.sure}),
            "latency": self.latency.to_json(),
            "speedup": self.speedup.to_json(),
            "params": self.trial.params,
            "macs": self.trial.macs,
            "size_bytes": self.trial.size_bytes,
            "split": self.split,
            "verdict": self.speedup.verdict,
            "footprint": dict(self.footprint),
        }


def final_front(points: Sequence[Confirmed], constraints: Constraints) -> list[Confirmed]:
    """What no other point dominates, slowest first: (drop as validation tells it, speedup measured again).

    The test split chooses nothing, so that its numbers are what they would be on any new data. Dense itself is a point, so one
    that is slower than dense falls off.
    """
    fits = [p for p in points if p.speedup.ci_high > 1.0 and p.speedup.value > 1.0 and _fits(p, constraints)]
    if constraints.max_drop is not None:
        surely = [p for p in fits if p.sure is None or p.sure >= SURE]
        believed = surely or [p for p in fits if p.choice_drop <= constraints.max_drop]
        fits = believed or [p for p in fits if p.trial.drop is not None and p.trial.drop <= constraints.max_drop]
    return pareto.non_dominated(fits, lambda p: (p.choice_drop, p.speedup.value))


def join_front(points: Sequence[Confirmed], more: Sequence[Confirmed], constraints: Constraints) -> list[Confirmed]:
    """The front over points and those that were made of them by training or quantising."""
    return pareto.non_dominated([*points, *final_front(more, constraints)], lambda p: (p.choice_drop, p.speedup.value))


def _fits(point: Confirmed, constraints: Constraints) -> bool:
    """Does a point meet everything but the limit on the drop?"""
    return constraints.met(-math.inf, point.speedup.value, point.latency.value, point.trial.size_bytes or 0)


def rescaled(points: Sequence[Confirmed], dense_s: float) -> list[Confirmed]:
    """The points with latencies that go with the dense latency of the last round: dense / speedup, as in every round.

    Each round measures the dense model anew, and a shared machine is faster in one minute than in the next; what was measured
    against it at the same time is the speedup; of several targets that of the first, whose latency it is.
    """
    scaled = []
    for point in points:
        own = first_targets(point.speedup)
        latency = replace(point.latency, value=dense_s / own.value, ci_low=dense_s / own.ci_high, ci_high=dense_s / own.ci_low)
        scaled.append(replace(point, latency=latency))
    return scaled


def point_of(confirmed: Confirmed, run: Path) -> FrontPoint:
    return FrontPoint(
        confirmed.trial,
        confirmed.metric,
        confirmed.drop,
        confirmed.latency,
        confirmed.speedup,
        run / "candidates" / str(confirmed.trial.number),
        confirmed.paired_drop,
        confirmed.told_drop,
        confirmed.told_high,
    )
