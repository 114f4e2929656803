"""The final front: measured again in fresh processes, scored on the test split, dominated points dropped.

A front of noisy numbers is a collection of lucky ones, so nothing that the search measured is reported. Every
finalist is measured again in fresh processes (`hwprune.latency.fresh`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from hwprune import compensation, patterns
from hwprune.common import formatting
from hwprune.errors import CandidateFailure, RunError
from hwprune.latency import fresh, layer_times
from hwprune.latency.bench import Bench
from hwprune.latency.source import MEASURED
from hwprune.records.measurement import Measurement
from hwprune.records.trial import Trial
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.final.finalists import finalists, moved_up, objectives
from hwprune.searching.final.point import Confirmed, final_front
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.study.store import Store
from hwprune.workload import data_checks

ROUNDS = 4
"""Rounds of measuring who moved up."""
PROFILE_ROUNDS, PROFILE_RUNS = 3, 8
"""Of the times by layer: turns of all models, and runs in each."""
SEQUENTIAL = "sequential"


def confirm(
    evaluator: Evaluator, store: Store, job: Job, make: Callable[[], Bench], progress: Progress, notes: list[str]
) -> list[Confirmed]:
    """Measure and score the finalists again; returns the final front and appends what the user should know to ``notes``.

    Finalists are compensated once more with the inputs that the pruned network really gives its layers, and checked: cut equals
    masked, file equals module. Then they are measured in fresh processes. Where that changes who is on the front, those who
    moved up are measured too, until nobody does.

    The evaluator's baseline is replaced by the dense model's numbers of the same measurement. Predicted and estimated latencies
    stay what they are: repeating them adds nothing.

    Args:
        make: a bench with a process of its own.

    Raises:
        RunError: the dense model can't be measured again, or a cut is wrong.
    """
    constraints = job.constraints
    assert evaluator.baseline is not None
    dense = evaluator.baseline.metric.value
    # A finalist's thorough compensation is no yardstick for trials that have not had it.
    trials = store.trials(as_searched=True)
    done: dict[int, Confirmed] = {}
    tried: set[int] = set()
    gains: list[tuple[float, Trial, Trial]] = []
    repaired = repairs(evaluator, job)
    chosen = finalists(trials, constraints, dense=dense, repaired=repaired)
    if chosen:
        _prepare_split(evaluator, notes)
    for _ in range(ROUNDS):
        if not chosen:
            break
        tried |= {t.number for t in chosen}
        ready = _refined(evaluator, store, chosen, job, progress, notes, gains)
        if ready:
            for point in _confirmed(evaluator, ready, make, progress, notes):
                done[point.trial.number] = point
        left = [t for t in trials if t.number in done or t.number not in tried]
        chosen = moved_up(_corrected(left, done), set(done), constraints, dense, repaired)
    if gains:
        ratios = sorted(ratio for ratio, _, _ in gains)
        _, before, after = max(gains, key=lambda one: abs((one[1].drop or 0.0) - (one[2].drop or 0.0)))
        notes.append(
            f"{len(gains)} of {len(tried)} finalists were compensated with their own inputs (sequential), which repairs more "
            f"than trials get during the search: their divergence from dense fell to {100 * ratios[len(ratios) // 2]:.0f} % of "
            f"what it was (median). It changed trial {before.number} most: {_moved(before, after)} on validation."
        )
    points = final_front(list(done.values()), constraints)
    if not tried:
        notes.append(constraints.nearest(store.trials(as_searched=True), _describe))
    elif not points:
        notes.append("No finalist held up when it was measured and scored again: the front is empty.")
        if constraints:
            known = [replace(t, drop=done[t.number].drop, speedup=done[t.number].speedup) for t in trials if t.number in done]
            notes.append(constraints.nearest(known or store.trials(as_searched=True), _describe))
    elif len(points) < len(tried):
        notes.append(
            f"{len(tried) - len(points)} of {len(tried)} finalists left the front in the final round: "
            "dominated by another, or outside the constraints."
        )
    return points


def _describe(trial: Trial) -> str:
    drop, speedup = objectives(trial)
    assert trial.latency is not None and trial.size_bytes is not None
    size = f"{formatting.seconds(trial.latency.value)}, {formatting.size(trial.size_bytes)}"
    return f"trial {trial.number} with drop {drop:.4f} at {speedup:.2f}x ({size})"


def _moved(before: Trial, after: Trial) -> str:
    return f"drop {before.drop or 0.0:+.4f} became {after.drop or 0.0:+.4f}"


def _corrected(trials: Sequence[Trial], done: Mapping[int, Confirmed]) -> list[Trial]:
    """The trials with the speedups of their last measurement. Drops stay those of validation: the test split chooses nothing."""
    return [t if t.number not in done else replace(t, speedup=done[t.number].speedup) for t in trials]


def _refined(
    evaluator: Evaluator,
    store: Store,
    chosen: Sequence[Trial],
    job: Job,
    progress: Progress,
    notes: list[str],
    gains: list[tuple[float, Trial, Trial]],
) -> list[Trial]:
    """The finalists with files, compensated with the pruned network's own inputs where that brings them closer to dense."""
    found = []
    for place, trial in enumerate(chosen):
        wanted = _thorough(evaluator, trial, job)
        better = None
        if wanted is not None:
            progress.stage(f"compensating finalist {place + 1} of {len(chosen)} with its own inputs")
            try:
                better = evaluator.refined(trial, wanted)
            except CandidateFailure as failure:
                notes.append(f"Trial {trial.number} keeps its quick compensation; the thorough one failed: {failure.reason}.")
        if better is not None and better.divergence is not None and trial.divergence is not None:
            store.refined(better)
            gains.append((better.divergence.value / trial.divergence.value, trial, better))
            progress.note(f"trial {trial.number}: {_moved(trial, better)} on validation")
        final = better or trial
        try:
            evaluator.check_exact(final)
            evaluator.ensure_files(final, weights=True)
        except CandidateFailure as failure:
            notes.append(f"Trial {trial.number} left the front: it can't be made again ({failure.reason}).")
            continue
        found.append(final)
    return found


def confirm_derived(
    evaluator: Evaluator, made: Sequence[Trial], make: Callable[[], Bench], progress: Progress, notes: list[str]
) -> list[Confirmed]:
    """Trained or quantised candidates, whose files are there, measured and scored like any other finalist."""
    return _confirmed(evaluator, made, make, progress, notes) if made else []


def repairs(evaluator: Evaluator, job: Job) -> bool:
    """Do finalists get a more thorough compensation than other trials? Not where the user has asked for another."""
    return job.repaired and not evaluator.pruner.untraceable


def _thorough(evaluator: Evaluator, trial: Trial, job: Job) -> str | None:
    """The compensation of a finalist, if it is another one than the trial's; what the user has asked for is kept."""
    names = trial.recipe.compensation.split("+")
    if not repairs(evaluator, job) or SEQUENTIAL in names:
        return None
    if not any(choice.pattern != patterns.BRANCH for choice in trial.recipe.choices):
        return None  # branches alone leave no layer to solve for
    return "+".join([*(name for name in names if name != compensation.NONE), SEQUENTIAL])


def _prepare_split(evaluator: Evaluator, notes: list[str]) -> None:
    if evaluator.workload.test is None:
        notes.append("The workload has no test split: the front keeps validation scores, which selection has made optimistic.")


def _confirmed(
    evaluator: Evaluator, chosen: Sequence[Trial], make: Callable[[], Bench], progress: Progress, notes: list[str]
) -> list[Confirmed]:
    """Fresh latencies and test scores of trials whose files are there."""
    models = {str(t.number): evaluator.folder(t.number) / evaluator.runtime.file for t in chosen}
    if evaluator.source.label == MEASURED:
        measured, footprints = _measure(evaluator, models, make, progress)
    else:
        base = evaluator.baseline
        assert base is not None
        measured = {str(t.number): (t.latency, t.speedup) for t in chosen if t.latency is not None and t.speedup is not None}
        measured["dense"] = (base.latency, base.self_speedup)
        footprints = {}
    progress.stage("scoring the finalists")
    return _score(evaluator, chosen, measured, footprints, notes)


def _measure(
    evaluator: Evaluator, models: dict[str, Path], make: Callable[[], Bench], progress: Progress
) -> tuple[dict[str, tuple[Measurement, Measurement]], dict[str, dict[str, Any]]]:
    """(latency, speedup) and footprint of the finalists and of the dense model."""
    progress.stage(f"measuring {formatting.some(len(models), 'finalist')} again in {fresh.PROCESSES} fresh processes")
    total = fresh.PROCESSES * fresh.SESSIONS * (1 + len(models))
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        progress.confirmed(count, total)

    measured = fresh.remeasure(models, evaluator.dense_model, evaluator.example, make, step=step, keep=partial(_keep, evaluator))
    if "dense" not in measured:
        raise RunError("the dense model could not be measured again in fresh processes")
    whole = {"dense": evaluator.dense_model, **models}
    footprints = fresh.footprint(whole, evaluator.example, make)
    for key, found in _by_layer(evaluator, whole, make).items():
        footprints[key] = {**footprints.get(key, {}), **found}
    return measured, footprints


def _by_layer(evaluator: Evaluator, models: Mapping[str, Path], make: Callable[[], Bench]) -> dict[str, dict[str, Any]]:
    """``layers``: seconds of each by the runtime's own profiler; ``runtime``: what it made of the model. For explanation only.

    The profiler's clock is wall time. All models take turns and the least of each layer counts, so that other work on the machine
    is not taken for a layer's own.
    """
    found: dict[str, dict[str, Any]] = {}
    with make() as bench:
        for _ in range(PROFILE_ROUNDS):
            for key, path in models.items():
                try:
                    bench.load("model", path)
                    facts = bench.facts("model")
                    operators = bench.profile("model", evaluator.example, PROFILE_RUNS) if path.suffix == ".onnx" else []
                except CandidateFailure:
                    continue
                proto = onnx.load(str(path), load_external_data=False) if operators else None
                now = layer_times.times(operators, proto) if proto is not None else {}
                known = found[key]["layers"] if key in found else now
                found[key] = {"layers": {name: min(s, known.get(name, s)) for name, s in now.items()}, "runtime": facts}
    return found


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
    else:
        name, split = "test", evaluator.test_split()
    dense, _ = evaluator.score("dense", split)
    word = data_checks.apart(evaluator.metric, base.metric, dense) if name == "test" else None
    if word and word not in notes:
        notes.append(word)
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
