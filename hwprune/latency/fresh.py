"""Measuring in fresh processes: what is reported, and what `hwprune verify` repeats.

Memory layout and thread placement belong to a process, so one process is one sample. Speedup is the median over
`PROCESSES` of them, its interval the extremes, which hold the true median with 96.9 % for 6.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from hwprune.errors import CandidateFailure
from hwprune.latency.bench import Bench, Limits
from hwprune.latency.interval import process_interval
from hwprune.latency.paired import Settings
from hwprune.measurement import Measurement
from hwprune.target import Target

PROCESSES = 6


def settings_for(target: Target) -> Settings:
    """Settings of one measurement in a fresh process. It is short: the interval comes from the spread of the processes."""
    return Settings(use_cpu_time=target.device == "cpu" and target.threads == 1, half_width=0.005, limit_s=0.5)


def remeasure(
    models: dict[str, Path],
    dense: Path,
    example: Path,
    target: Target,
    limits: Limits,
    settings: Settings,
    processes: int = PROCESSES,
    step: Callable[[], None] = lambda: None,
) -> dict[str, tuple[Measurement, Measurement]]:
    """(latency, speedup) of each model in fresh processes; the key ``dense`` is the dense model against itself.

    A model that fails in any process is left out.
    """
    paired: dict[str, list[dict[str, Any]]] = {key: [] for key in ["dense", *models]}
    order = ["dense", *models]
    for number in range(processes):
        with Bench(target, limits) as bench:
            bench.load("reference", dense, keep=True)
            turn = number % len(order)
            for key in order[turn:] + order[:turn]:  # nobody is always measured first
                try:
                    bench.load("model", dense if key == "dense" else models[key])
                    paired[key].append(bench.pair("model", "reference", example, settings))
                except CandidateFailure:
                    continue
                finally:
                    step()
    dense_s = median(result["dense_latency_s"] for results in paired.values() for result in results)
    return {key: _summary(results, dense_s) for key, results in paired.items() if len(results) == processes}


def _summary(results: list[dict[str, Any]], dense_s: float) -> tuple[Measurement, Measurement]:
    """Latency is the dense latency over all processes divided by the speedup, so that the two always agree.

    The candidate's own median, taken at another moment than the dense one of another process, would not: a shared
    machine is 20 % faster in one minute than in the next.
    """
    speedup, low, high = process_interval([result["speedup"] for result in results])
    conditions = {
        "clock": results[0]["clock"],
        "processes": len(results),
        "speedups": [round(result["speedup"], 5) for result in results],
        "latencies_s": [result["latency_s"] for result in results],
        "dense_latencies_s": [result["dense_latency_s"] for result in results],
        "wall_speedup": median(result["wall_speedup"] for result in results),
        "contended": max(result["contended"] for result in results),
    }
    latency = {"clock": results[0]["clock"], "dense_s": dense_s, "from": "dense_s / speedup"}
    return (
        Measurement(dense_s / speedup, "s", dense_s / high, dense_s / low, len(results), latency),
        Measurement(speedup, "x", low, high, len(results), conditions),
    )
