"""Finalists and the dense model in fresh processes: latency, memory, energy, time by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from hwprune.common import formatting
from hwprune.errors import CandidateFailure, RunError
from hwprune.latency import fresh, layer_times
from hwprune.latency.bench import Bench
from hwprune.latency.fresh import Remeasured
from hwprune.latency.paired import Paired
from hwprune.latency.source import MEASURED
from hwprune.records.trial import Trial
from hwprune.searching.evaluating.dense import Baseline
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.progress import Progress

DENSE = "dense"
PROFILE_ROUNDS, PROFILE_RUNS = 3, 8
"""How times by layer are taken: turns of all models, and runs in each turn."""


@dataclass(frozen=True, slots=True)
class FreshNumbers:
    """What was measured, by the trial's number as text; ``dense`` is the dense model.

    Attributes:
        measured: latency and speedup; a model that failed is left out.
        footprints: memory and energy, see `hwprune.latency.fresh.footprint`; ``layers`` and ``runtime``, see `_by_layer`.
    """

    measured: Mapping[str, Remeasured]
    footprints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def remeasure(
    evaluator: Evaluator, chosen: Sequence[Trial], dense: Baseline, make: Callable[[], Bench], progress: Progress
) -> FreshNumbers:
    """Measure trials whose files are there, where latencies are measured; else what was predicted stays.

    Raises:
        RunError: the dense model can't be measured.
    """
    if evaluator.source.label != MEASURED:
        known = {
            str(t.number): Remeasured(t.latency, t.speedup) for t in chosen if t.latency is not None and t.speedup is not None
        }
        return FreshNumbers({**known, DENSE: Remeasured(dense.latency, dense.self_speedup)})
    models = {str(t.number): evaluator.files.model(t.number) for t in chosen}
    progress.stage(f"measuring {formatting.some(len(models), 'finalist')} again in {fresh.PROCESSES} fresh processes")
    total = fresh.PROCESSES * fresh.SESSIONS * (1 + len(models))
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        progress.confirmed(count, total)

    def keep(key: str, paired: Paired) -> None:
        evaluator.files.keep_samples(key if key == DENSE else int(key), paired, "confirm")

    measured = fresh.remeasure(models, evaluator.dense.path, evaluator.dense.example, make, step=step, keep=keep)
    if DENSE not in measured:
        raise RunError("the dense model could not be measured again in fresh processes")
    whole = {DENSE: evaluator.dense.path, **models}
    footprints = fresh.footprint(whole, evaluator.dense.example, make)
    layers = _by_layer(evaluator, whole, make)
    return FreshNumbers(measured, {key: {**footprints.get(key, {}), **layers.get(key, {})} for key in whole})


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
                    operators = bench.profile("model", evaluator.dense.example, PROFILE_RUNS) if path.suffix == ".onnx" else []
                except CandidateFailure:
                    continue
                proto = onnx.load(str(path), load_external_data=False) if operators else None
                now = layer_times.times(operators, proto) if proto is not None else {}
                known = found[key]["layers"] if key in found else now
                found[key] = {"layers": {name: min(s, known.get(name, s)) for name, s in now.items()}, "runtime": facts}
    return found
