"""Several targets at once: one candidate measured on each, and one speedup that counts.

Accuracy, profiles and memory come from the first target. A speedup is that of the worst target, or the weighted geometric mean;
what each target measured travels with it (`Paired.parts`, and ``targets`` among the conditions).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency.bench import Bench, Waiting
from hwprune.latency.host import Host
from hwprune.latency.paired import Paired, Settings
from hwprune.latency.source import Measured
from hwprune.latency.worker_process import BenchLimits
from hwprune.records.measurement import Measurement
from hwprune.records.target import Target

WORST = "worst"
TARGETS, FIRST = "targets", "first"
"""Conditions of a combined speedup: what each target measured, and the name of the first, whose latency it comes with."""


def parse(text: str) -> dict[str, float | None]:
    """``cpu,litert`` or ``cpu=2,litert=1`` -> name -> weight; None where the worst counts. Raises `UsageError`."""
    if Path(text).is_file():  # a profile's path may hold anything
        return {text: None}
    weights: dict[str, float | None] = {}
    for part in text.split(","):
        name, equals, word = part.strip().partition("=")
        try:
            weight = float(word) if equals else None
        except ValueError:
            weight = math.nan
        if not name or name in weights or (weight is not None and not 0 < weight < math.inf):
            raise UsageError(f"targets are NAME,NAME or NAME=WEIGHT,NAME=WEIGHT with weights above 0, each once, got {text!r}")
        weights[name] = weight
    if len({weight is None for weight in weights.values()}) > 1:
        raise UsageError(f"either all targets have a weight or none, got {text!r}")
    return weights


def combine(parts: Mapping[str, Paired], weights: Mapping[str, float | None]) -> Paired:
    """One result of several targets': the first one's, with the speedup that counts.

    The worst of several speedups lies between the least lower and the least upper end of their intervals. Of a mean, the
    deviations of ln(speedup) add up as those of independent measurements do.
    """
    speedup = combined_speedup({name: part.speedup for name, part in parts.items()}, weights)
    details = {name: {"speedup": _brief(part.speedup), "latency": _brief(part.latency)} for name, part in parts.items()}
    first = next(iter(parts.values()))
    conditions = {**speedup.conditions, TARGETS: details, FIRST: next(iter(parts))}
    for key in ("contended", "outliers"):
        conditions[key] = max(float(part.speedup.conditions.get(key, 0.0)) for part in parts.values())
    conditions["throttled"] = any(part.speedup.conditions.get("throttled") for part in parts.values())
    conditions["converged"] = all(part.speedup.conditions.get("converged", True) for part in parts.values())
    return replace(first, speedup=replace(speedup, conditions=conditions), parts=dict(parts))


def combined_speedup(speedups: Mapping[str, Measurement], weights: Mapping[str, float | None]) -> Measurement:
    """The speedup that counts; ``counts`` among its conditions is ``worst`` with the target's name, or ``mean``."""
    if any(weights[name] is None for name in speedups):
        name = min(speedups, key=lambda name: speedups[name].value)
        low, high = (min(getattr(one, end) for one in speedups.values()) for end in ("ci_low", "ci_high"))
        worst = speedups[name]
        return replace(
            worst, ci_low=low, ci_high=max(high, worst.value), conditions={**worst.conditions, "counts": f"{WORST}: {name}"}
        )
    total = sum(weights[name] or 0.0 for name in speedups)
    shares = {name: (weights[name] or 0.0) / total for name in speedups}
    mean = sum(share * math.log(speedups[name].value) for name, share in shares.items())
    below = math.hypot(*(shares[n] * math.log(one.value / one.ci_low) for n, one in speedups.items()))
    above = math.hypot(*(shares[n] * math.log(one.ci_high / one.value) for n, one in speedups.items()))
    first = next(iter(speedups.values()))
    return replace(
        first, value=math.exp(mean), ci_low=math.exp(mean - below), ci_high=math.exp(mean + above),
        conditions={**first.conditions, "counts": "mean"},
    )  # fmt: skip


def _brief(measured: Measurement) -> dict[str, float]:
    return {"value": measured.value, "ci_low": measured.ci_low, "ci_high": measured.ci_high}


@final
class FleetBench(Bench):
    """The bench of the first target, which also times on the others.

    A model is loaded on the others when it is timed there first: what is only scored, or stopped early, costs no conversion.

    Attributes:
        members: target's name -> bench; the first one is this.
        session_sds: target's name -> deviation between sessions, where the gate has found it.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        weights: Mapping[str, float | None],
        limits: BenchLimits | None = None,
        host: Host | None = None,
        shapes: Sequence[Sequence[int]] = (),
        waiting: Waiting = lambda _text: None,
    ) -> None:
        """Nothing is started before the first command."""
        super().__init__(targets[0], limits, host, shapes, waiting)
        self._weights = weights
        self._others = {target.name: Bench(target, limits, host, shapes, waiting) for target in targets[1:]}
        self._name = targets[0].name
        self.members: dict[str, Bench] = {self._name: self, **self._others}
        self.session_sds: dict[str, float] = {}
        self._waiting_models: dict[str, tuple[Path, bool]] = {}
        self._loaded: dict[str, set[str]] = {name: set() for name in self._others}

    def load(
        self, key: str, path: Path, *, keep: bool = False, threads: int | None = None, shapes: Sequence[Sequence[int]] = ()
    ) -> None:
        super().load(key, path, keep=keep, threads=threads, shapes=shapes)
        if threads is None:
            self._waiting_models.pop(key, None)
            self._waiting_models[key] = path, keep
            for loaded in self._loaded.values():
                loaded.discard(key)

    def drop(self, key: str) -> None:
        super().drop(key)
        if self._waiting_models.pop(key, None) is not None:
            for name, bench in self._others.items():
                if key in self._loaded[name] and bench.alive:
                    bench.drop(key)
                self._loaded[name].discard(key)

    def pair(self, a: str, b: str, samples: Path, settings: Settings, samples_of_b: Path | None = None) -> Paired:
        """The paired latency on every target, as one; see `combine`. Raises `CandidateFailure`, with the target's name."""
        parts = {}
        for name in self.members:
            try:
                parts[name] = self.pair_on(name, a, b, samples, settings, samples_of_b)
            except CandidateFailure as failure:
                raise CandidateFailure(failure.stage, f"on {name}: {failure.reason}") from failure
        return combine(parts, self._weights)

    def pair_on(self, name: str, a: str, b: str, samples: Path, settings: Settings, samples_of_b: Path | None = None) -> Paired:
        """The paired latency on one target, by its own clock and with its own deviation between sessions."""
        sd = self.session_sds.get(name, settings.session_sd) if settings.session_sd else 0.0
        own = replace(settings, clock=self.members[name].clock, session_sd=sd)
        if name == self._name:
            return super().pair(a, b, samples, own, samples_of_b)
        bench, loaded = self._others[name], self._loaded[name]
        if not bench.alive:
            loaded.clear()
        for key, (path, keep) in self._waiting_models.items():  # in the order in which they were asked for
            if key in (a, b) and key not in loaded:
                bench.load(key, path, keep=keep)
                loaded.add(key)
        return bench.pair(a, b, samples, own, samples_of_b)

    def identity(self) -> dict[str, Any]:
        """The first target's, with those of the others."""
        return {**super().identity(), "fleet": {name: bench.identity() for name, bench in self._others.items()}}

    def combine(self, parts: Mapping[str, Paired]) -> Paired:
        return combine(parts, self._weights)

    def own_identity(self, name: str) -> dict[str, Any]:
        """The identity of one target alone, under which its latency table is kept."""
        return super().identity() if name == self._name else self._others[name].identity()

    def check(self) -> dict[str, Any]:
        """The first target's, with what is missing for any."""
        found = super().check()
        missing = [f"{name}: {text}" for name, bench in self._others.items() for text in bench.check()["missing"]]
        return {**found, "missing": [*found["missing"], *missing]}

    def close(self) -> None:
        super().close()
        for bench in self._others.values():
            bench.close()


@final
class FleetMeasured(Measured):
    """Paired measurement on every target."""

    def __init__(self, bench: FleetBench, example: Path, settings: Settings) -> None:
        super().__init__(bench, example, settings)
        self._fleet = bench

    def gate(self) -> Paired:
        """Each target's dense model against copies of itself. The result is that of the target that is furthest from 1.

        The worst of several would be below 1 by chance alone, so nothing is combined here.
        """
        found = {name: self.gate_of(_Alone(self._fleet, name)) for name in self._fleet.members}
        self._fleet.session_sds = {name: settings.session_sd for name, (_, settings) in found.items()}
        self.settings = replace(self.settings, session_sd=max(self._fleet.session_sds.values()))
        results = {name: result for name, (result, _) in found.items()}
        furthest = max(results, key=lambda name: abs(math.log(results[name].ratio)))
        passed = all(result.passed for result in results.values())
        first = next(iter(results.values()))
        details = {name: {"speedup": _brief(one.speedup), "latency": _brief(one.latency)} for name, one in results.items()}
        return replace(results[furthest], latency=first.latency).with_conditions(
            **{TARGETS: details, FIRST: next(iter(results))}, passed=passed, session_sd=self.settings.session_sd
        )


class _Alone:
    """One target of a fleet, as far as the gate needs a bench."""

    def __init__(self, fleet: FleetBench, name: str) -> None:
        self._fleet, self._name = fleet, name
        self.load, self.drop = fleet.load, fleet.drop

    def pair(self, a: str, b: str, samples: Path, settings: Settings) -> Paired:
        return self._fleet.pair_on(self._name, a, b, samples, settings)
