"""Measuring in fresh processes: what is reported, and what `hwprune verify` repeats.

Memory layout and thread placement belong to a process and a session, so one process is one sample, the geometric mean
over `SESSIONS` pairs of new sessions. Speedup is the median over `PROCESSES` of them, its interval the extremes, which
hold the true median with 96.9 % for 6.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any, NamedTuple

from hwprune.errors import CandidateFailure, RunError
from hwprune.latency.bench import Bench
from hwprune.latency.interval import process_interval
from hwprune.latency.paired import Paired, Settings, combine_one
from hwprune.records.measurement import Measurement

PROCESSES = 6
SESSIONS = 2
LIMIT_S, HALF_WIDTH = 0.12, 0.01
"""Seconds of one measurement, and the half-width of ln(ratio) with which it ends before: coarse, because sessions of one file
differ by more, and the interval comes from the spread of the processes. (Eleven digits candidates: standard errors in a session
of 0.25 s were 0.01 to 0.03, standard deviations between sessions 0.03 to 0.23; with 0.12 s processes spread as with 0.25.)"""


class Remeasured(NamedTuple):
    """One model in fresh processes: seconds of one batch, and dense latency / its latency."""

    latency: Measurement
    speedup: Measurement


def settings_for(clock: str) -> Settings:
    """Settings of one measurement in a fresh process."""
    return Settings(clock=clock, half_width=HALF_WIDTH, limit_s=LIMIT_S)


def remeasure(
    models: dict[str, Path],
    dense: Path,
    example: Path | Mapping[str, Path],
    make: Callable[[], Bench],
    settings: Settings | None = None,
    processes: int | None = None,
    step: Callable[[], None] = lambda: None,
    keep: Callable[[str, Paired], None] | None = None,
) -> dict[str, Remeasured]:
    """Latency and speedup of each model in fresh processes; the key ``dense`` is the dense model against itself.

    A model that fails in any process is left out.

    Args:
        example: a samples file whose first batch is timed; or one for each model and for ``dense``, where shapes differ.
        make: a new bench, with a process of its own.
        settings: default: `settings_for` the bench's clock.
        processes: default: `PROCESSES`.
        keep: takes each single measurement with its raw samples.

    Raises:
        RunError: the dense model can't be loaded any more.
    """
    sessions: dict[str, list[tuple[int, Paired]]] = {key: [] for key in ["dense", *models]}
    examples = {key: example if isinstance(example, Path) else example[key] for key in sessions}
    apart = {key: (examples["dense"],) for key in examples if examples[key] != examples["dense"]}
    order = ["dense", *models]
    failed: set[str] = set()
    combine: Callable[[Mapping[str, Paired]], Paired] = combine_one
    for number in range(processes or PROCESSES):
        with make() as bench:
            settings, combine = settings or settings_for(bench.clock), bench.combine
            for session in range(SESSIONS):
                # Who is loaded first gets other memory, in a new process most of all; let it be either in turn.
                swapped = (number + session) % 2 == 1
                if not swapped:
                    _load_reference(bench, dense)
                turn = len(sessions["dense"]) % len(order)
                for key in order[turn:] + order[:turn]:  # nobody is always measured first
                    if key not in failed:
                        try:
                            bench.load("model", dense if key == "dense" else models[key])
                            if swapped:
                                _load_reference(bench, dense)
                            result = bench.pair("model", "reference", examples[key], settings, *apart.get(key, ()))
                            sessions[key].append((number, result))
                            if keep is not None:
                                keep(key, result)
                        except CandidateFailure:
                            failed.add(key)
                    step()
    if not any(sessions.values()):
        return {}
    everything = [result for results in sessions.values() for _, result in results]
    dense_s = {"": median(result.dense_latency_s for result in everything)}
    for name in everything[0].parts:
        dense_s[name] = median(result.parts[name].dense_latency_s for result in everything)
    return {key: _summary(results, dense_s, combine) for key, results in sessions.items() if key not in failed}


def _load_reference(bench: Bench, dense: Path) -> None:
    """Raises `RunError`: without the dense model nothing is comparable, so no candidate is to blame."""
    try:
        bench.load("reference", dense, keep=True)
    except CandidateFailure as failure:
        raise RunError(f"the dense model can't be loaded in a fresh process: {failure.reason}") from failure


def footprint(models: dict[str, Path], example: Path, make: Callable[[], Bench]) -> dict[str, dict[str, Any]]:
    """Memory and energy of each model, alone in a process of its own.

    ``loaded_bytes``: what loading added; ``peak_bytes``: the most that was in use while it ran; ``joules``: of one run.
    None where the machine doesn't tell. A model that fails is left out.
    """
    footprints = {}
    for key, path in models.items():
        with make() as bench, contextlib.suppress(CandidateFailure):
            bench.prepare()
            bench.load("model", path)
            footprints[key] = {**bench.memory("model", example), "joules": bench.energy("model", example)}
    return footprints


def _of_targets(
    parts: Mapping[str, list[tuple[int, Paired]]],
    dense_s: Mapping[str, float],
    combine: Callable[[Mapping[str, Paired]], Paired],
) -> Remeasured:
    """The summary of several targets: each by itself over all processes, and only then the one that counts."""
    each = {name: _summary(own, {"": dense_s[name]}, combine) for name, own in parts.items()}
    whole = combine({name: Paired(one.speedup, one.latency) for name, one in each.items()})
    return Remeasured(whole.latency, whole.speedup)


def _summary(
    results: list[tuple[int, Paired]], dense_s: Mapping[str, float], combine: Callable[[Mapping[str, Paired]], Paired]
) -> Remeasured:
    """Latency is the dense latency over all processes divided by the speedup, so that the two always agree.

    The candidate's own median, taken at another moment than the dense one of another process, would not: a shared
    machine is 20 % faster in one minute than in the next.

    Args:
        results: (process, measurement) of every session.
        dense_s: the dense latency over all processes and models, by target; "" of the only one, or the first.
        combine: makes one result of several targets'.
    """
    if names := list(results[0][1].parts):
        return _of_targets(
            {name: [(process, result.parts[name]) for process, result in results] for name in names}, dense_s, combine
        )
    processes = sorted({process for process, _ in results})
    ratios = [geometric_mean([r.ratio for process, r in results if process == number]) for number in processes]
    ratio, low, high = process_interval(ratios)
    measured = [result for _, result in results]
    conditions = {
        "clock": measured[0].clock,
        "processes": len(processes),
        "speedups": [round(value, 5) for value in ratios],
        "latencies_s": [result.latency.value for result in measured],
        "dense_latencies_s": [result.dense_latency_s for result in measured],
        "wall_speedup": median(result.speedup.conditions["wall_speedup"] for result in measured),
        "contended": max(result.speedup.conditions["contended"] for result in measured),
        "throttled": any(result.speedup.conditions["throttled"] for result in measured),
        "outliers": max(result.speedup.conditions["outliers"] for result in measured),
        "machine": measured[-1].speedup.conditions["machine"],
    }
    whole_s = dense_s[""]
    latency = {"clock": measured[0].clock, "dense_s": whole_s, "from": "dense_s / speedup"}
    return Remeasured(
        Measurement(whole_s / ratio, "s", whole_s / high, whole_s / low, len(processes), latency),
        Measurement(ratio, "x", low, high, len(processes), conditions),
    )
