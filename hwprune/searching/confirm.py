"""The final front: measured again in fresh processes, scored on the test split, dominated points dropped.

A front of noisy numbers is a collection of lucky ones, so nothing that the search measured is reported. Every
finalist is measured again in fresh processes (`hwprune.latency.fresh`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hwprune import front
from hwprune.errors import CandidateFailure, RunError
from hwprune.latency import fresh
from hwprune.latency.bench import Bench
from hwprune.latency.source import MEASURED
from hwprune.measurement import Measurement
from hwprune.searching.evaluator import Evaluator
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
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
    footprint: Mapping[str, Any] = field(default_factory=dict)
    """Memory and energy, see `hwprune.latency.fresh.footprint`."""

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


def confirm(
    evaluator: Evaluator, trials: Sequence[Trial], job: Job, make: Callable[[], Bench], progress: Progress, notes: list[str]
) -> list[Confirmed]:
    """Measure and score the finalists again; returns the final front and appends what the user should know to ``notes``.

    The evaluator's baseline is replaced by the dense model's numbers of the same measurement. Predicted and estimated latencies
    stay what they are: repeating them adds nothing.

    Args:
        make: a bench with a process of its own.

    Raises:
        RunError: the dense model can't be measured again.
    """
    chosen = finalists(trials, job.max_drop, job.min_speedup)
    if not chosen:
        notes.append(_nothing(trials, job.max_drop or 0.0))
    models = {str(t.number): evaluator.ensure_files(t, weights=True) / evaluator.runtime.file for t in chosen}
    if evaluator.source.label == MEASURED:
        measured, footprints = _measure(evaluator, models, make, progress)
    else:
        base = evaluator.baseline
        assert base is not None
        measured = {str(t.number): (t.latency, t.speedup) for t in chosen if t.latency is not None and t.speedup is not None}
        measured["dense"] = (base.latency, base.self_speedup)
        footprints = {}
    progress.stage("scoring the finalists")
    scored = _score(evaluator, chosen, measured, footprints, notes)
    points = final_front(scored, job.max_drop, job.min_speedup)
    if chosen and not points:
        notes.append("No finalist held up when it was measured and scored again: the front is empty.")
    elif len(points) < len(scored):
        notes.append(
            f"{len(scored) - len(points)} of {len(scored)} finalists left the front in the final round: "
            "dominated by another, or outside the constraints."
        )
    return points


def _measure(
    evaluator: Evaluator, models: dict[str, Path], make: Callable[[], Bench], progress: Progress
) -> tuple[dict[str, tuple[Measurement, Measurement]], dict[str, dict[str, Any]]]:
    """(latency, speedup) and footprint of the finalists and of the dense model."""
    progress.stage(f"measuring {len(models)} finalists again in {fresh.PROCESSES} fresh processes")
    total = fresh.PROCESSES * fresh.SESSIONS * (1 + len(models))
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        progress.confirmed(count, total)

    measured = fresh.remeasure(models, evaluator.dense_model, evaluator.example, make, step=step, keep=partial(_keep, evaluator))
    if "dense" not in measured:
        raise RunError("the dense model could not be measured again in fresh processes")
    return measured, fresh.footprint({"dense": evaluator.dense_model, **models}, evaluator.example, make)


def _keep(evaluator: Evaluator, key: str, result: dict[str, Any]) -> None:
    evaluator.keep_samples(key if key == "dense" else int(key), result, "confirm")


def _score(
    evaluator: Evaluator,
    chosen: Sequence[Trial],
    measured: dict[str, tuple[Measurement, Measurement]],
    footprints: dict[str, dict[str, Any]],
    notes: list[str],
) -> list[Confirmed]:
    """Score the finalists on the test split, or on validation where there is none."""
    base = evaluator.baseline
    assert base is not None
    if evaluator.workload.test is None:
        name, split = "validation", evaluator.validation
        notes.append("The workload has no test split: the front keeps validation scores, which selection has made optimistic.")
    else:
        name, split = "test", evaluator.add_split("test")
    dense, _ = evaluator.score("dense", split)
    latency, speedup = measured["dense"]
    evaluator.baseline = replace(
        base, test_metric=dense, split=name, latency=latency, self_speedup=speedup, footprint=footprints.get("dense", {})
    )
    scored = []
    for trial in chosen:
        try:
            if str(trial.number) not in measured:
                raise CandidateFailure("measure", "it failed in a fresh process")
            evaluator.bench.load("candidate", evaluator.folder(trial.number) / evaluator.runtime.file)
            metric, _ = evaluator.score("candidate", split)
        except CandidateFailure as failure:
            notes.append(f"Trial {trial.number} left the front: {failure.reason}.")
            continue
        latency, speedup = measured[str(trial.number)]
        drop = evaluator.metric.drop(dense.value, metric.value)
        scored.append(Confirmed(trial, metric, drop, latency, speedup, name, footprints.get(str(trial.number), {})))
    return scored


def _nothing(trials: Sequence[Trial], max_drop: float) -> str:
    """Why there are no finalists, and what came nearest."""
    measured = [t for t in trials if t.measured]
    if not measured:
        return "No candidate could be measured; the reasons are in trials.csv."
    fastest = max(measured, key=lambda t: objectives(t)[1])
    nearest = min(measured, key=lambda t: (max(0.0, objectives(t)[0] - max_drop), -objectives(t)[1]))
    (drop, speedup), (fast_drop, fast) = objectives(nearest), objectives(fastest)
    return (
        f"No candidate met the constraints. Nearest: trial {nearest.number} with drop {drop:.4f} at {speedup:.2f}x; "
        f"fastest: trial {fastest.number} with {fast:.2f}x at drop {fast_drop:.4f}."
    )
