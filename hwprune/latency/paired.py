"""Paired latency of two models in one process.

Quads A B B A (A candidate, B dense), each letter a run of calls that lasts at least `Settings.letter_s`; per
quad d = ln((A1 + A2) / (B1 + B2)), which cancels linear drift; the estimate is the median of d with an
order-statistic interval; checks at 16, 32, 64 ... quads share the error probability (Bonferroni), because
looking often inflates it. Source: methods 7.

Both clocks are read: wall time, and the CPU time of the calling thread, in which ONNX Runtime does all its work
when it has one intra-op thread. On a shared machine a short run is preempted less often than a long one, so wall
time is biased even when paired; CPU time is not. Where the two differ by much the quad was contended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from hwprune.latency.interval import decorrelate, median_interval

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from; tests bring their own."""

    wall_ns: Callable[[], int] = time.perf_counter_ns
    cpu_ns: Callable[[], int] = time.thread_time_ns


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to measure.

    Attributes:
        use_cpu_time: rank by CPU time of the calling thread (one-thread runtimes), else by wall time.
        half_width: stop when the interval of ln(ratio) is within +- this.
        limit_s: give up then and keep the wide interval.
        letter_s: shortest time of one letter: timer and scheduler noise are small against 2 ms.
        contended: a quad whose wall time exceeds its CPU time by this fraction was contended.
    """

    use_cpu_time: bool = True
    half_width: float = 0.01
    limit_s: float = 0.5
    letter_s: float = 0.002
    warmup_runs: int = 10
    warmup_limit_s: float = 0.5
    contended: float = 0.05
    alpha: float = 0.05
    most_quads: int = 1024

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Paired:
    """What one paired measurement gave. Speedups are dense / candidate.

    ``wall_speedup`` is beside ``speedup`` when that is from CPU time; ``contended`` is the share of quads in which
    wall time exceeded CPU time by more than `Settings.contended`.
    """

    clock: str
    speedup: float
    ci_low: float
    ci_high: float
    latency_s: float
    latency_low_s: float
    latency_high_s: float
    dense_latency_s: float
    quads: int
    runs_a_letter: tuple[int, int]
    wall_speedup: float
    wall_latency_s: float
    contended: float
    converged: bool
    log_ratios: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "log_ratios": [round(value, 6) for value in self.log_ratios]}


def measure(candidate: Run, dense: Run, settings: Settings, clock: Clock | None = None) -> Paired:
    """Time ``candidate`` against ``dense``."""
    clock = clock or Clock()
    runs_a = _warm_up(candidate, settings, clock)
    runs_b = _warm_up(dense, settings, clock)
    checks = [n for n in (16, 32, 64, 128, 256, 512, 1024) if n <= settings.most_quads]
    alpha = settings.alpha / len(checks)
    a_wall: list[float] = []
    a_cpu: list[float] = []
    b_wall: list[float] = []
    b_cpu: list[float] = []
    start = clock.wall_ns()
    estimate, low, high, converged = 0.0, 0.0, 0.0, False
    for n in checks:
        late = False
        while len(a_wall) < n and not late:
            a1, b1 = _letter(candidate, runs_a, clock), _letter(dense, runs_b, clock)
            b2, a2 = _letter(dense, runs_b, clock), _letter(candidate, runs_a, clock)
            a_wall.append((a1[0] + a2[0]) / (2 * runs_a))
            a_cpu.append((a1[1] + a2[1]) / (2 * runs_a))
            b_wall.append((b1[0] + b2[0]) / (2 * runs_b))
            b_cpu.append((b1[1] + b2[1]) / (2 * runs_b))
            late = len(a_wall) >= 8 and (clock.wall_ns() - start) * 1e-9 > settings.limit_s
        ratios = _log_ratios(a_cpu, b_cpu) if settings.use_cpu_time else _log_ratios(a_wall, b_wall)
        estimate, low, high = median_interval(decorrelate(ratios), alpha)
        converged = (high - low) / 2 <= settings.half_width
        if converged or late:
            break
    own, other = (a_cpu, b_cpu) if settings.use_cpu_time else (a_wall, b_wall)
    latency, latency_low, latency_high = median_interval(own, settings.alpha)
    busy = [
        max(aw / max(ac, 1e-12), bw / max(bc, 1e-12)) - 1 > settings.contended
        for aw, ac, bw, bc in zip(a_wall, a_cpu, b_wall, b_cpu, strict=True)
    ]
    return Paired(
        clock="thread_cpu" if settings.use_cpu_time else "wall",
        speedup=math.exp(-estimate),
        ci_low=math.exp(-high),
        ci_high=math.exp(-low),
        latency_s=latency,
        latency_low_s=latency_low,
        latency_high_s=latency_high,
        dense_latency_s=median(other),
        quads=len(a_wall),
        runs_a_letter=(runs_a, runs_b),
        wall_speedup=math.exp(-median(_log_ratios(a_wall, b_wall))),
        wall_latency_s=median(a_wall),
        contended=sum(busy) / len(busy) if settings.use_cpu_time else 0.0,
        converged=converged,
        log_ratios=tuple(ratios),
    )


def _log_ratios(a: list[float], b: list[float]) -> list[float]:
    return [math.log(max(x, 1e-12) / max(y, 1e-12)) for x, y in zip(a, b, strict=True)]


def _letter(run: Run, runs: int, clock: Clock) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of ``runs`` calls."""
    wall, cpu = clock.wall_ns(), clock.cpu_ns()
    for _ in range(runs):
        run()
    return (clock.wall_ns() - wall) * 1e-9, (clock.cpu_ns() - cpu) * 1e-9


def _warm_up(run: Run, settings: Settings, clock: Clock) -> int:
    """Run until two successive blocks agree within 5 %; returns how many calls make one letter."""
    start = clock.wall_ns()
    before = 0.0
    while True:
        wall, _ = _letter(run, settings.warmup_runs, clock)
        if before and abs(wall - before) <= 0.05 * before:
            break
        if (clock.wall_ns() - start) * 1e-9 > settings.warmup_limit_s:
            break
        before = wall
    one = max(wall / settings.warmup_runs, 1e-9)
    return max(1, math.ceil(settings.letter_s / one))
