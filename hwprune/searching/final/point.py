"""Confirmed points and the final front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hwprune.records import pareto
from hwprune.records.measurement import Measurement
from hwprune.records.trial import Trial
from hwprune.searching.constraints import Constraints
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
    footprint: Mapping[str, Any] = field(default_factory=dict)
    """Memory and energy, see `hwprune.latency.fresh.footprint`; seconds by layer, and what the runtime made of the model."""

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
            "verdict": self.speedup.verdict,
            "footprint": dict(self.footprint),
        }


def final_front(points: Sequence[Confirmed], constraints: Constraints) -> list[Confirmed]:
    """What no other point dominates, slowest first: (drop on the final split, speedup measured again).

    Dense itself is a point, so one that is slower than dense, or not faster and worse, falls off.
    """
    faster = [p for p in points if p.speedup.ci_high > 1.0 and p.speedup.value > 1.0]
    fits = [p for p in faster if constraints.met(p.drop, p.speedup.value, p.latency.value, p.trial.size_bytes or 0)]
    return pareto.non_dominated(fits, lambda p: (p.drop, p.speedup.value))


def join_front(points: Sequence[Confirmed], more: Sequence[Confirmed], constraints: Constraints) -> list[Confirmed]:
    """The front over points and those that were made of them by training or quantising."""
    fits = [p for p in more if constraints.met(p.drop, p.speedup.value, p.latency.value, p.trial.size_bytes or 0)]
    fits = [p for p in fits if p.speedup.ci_high > 1 and p.speedup.value > 1]
    return pareto.non_dominated([*points, *fits], lambda p: (p.drop, p.speedup.value))


def rescaled(points: Sequence[Confirmed], dense_s: float) -> list[Confirmed]:
    """The points with latencies that go with the dense latency of the last round: dense / speedup, as in every round.

    Each round measures the dense model anew, and a shared machine is faster in one minute than in the next; what was measured
    against it at the same time is the speedup.
    """
    return [
        replace(
            p,
            latency=replace(
                p.latency, value=dense_s / p.speedup.value, ci_low=dense_s / p.speedup.ci_high,
                ci_high=dense_s / p.speedup.ci_low,
            ),
        )
        for p in points
    ]  # fmt: skip


def point_of(confirmed: Confirmed, run: Path) -> FrontPoint:
    return FrontPoint(
        confirmed.trial,
        confirmed.metric,
        confirmed.drop,
        confirmed.latency,
        confirmed.speedup,
        run / "candidates" / str(confirmed.trial.number),
    )
