"""Paired latency of two models in one process.

Quads A B B A (A candidate, B dense), each letter a run of calls that lasts at least `Settings.letter_s`; per
quad d = ln((A1 + A2) / (B1 + B2)), which cancels linear drift; the estimate is the median of d with an
order-statistic interval; checks at 16, 32, 64 ... quads share the error probability (Bonferroni), because
looking often inflates it.

Wall time and the CPU time of the calling thread are both read: in that thread a CPU runtime with one intra-op thread
does all its work. On a shared machine a short run is preempted less often than a long one, so wall time is biased even when
paired; CPU time is not. Where the two differ by much the quad was contended. A GPU's own events are the third clock.

What differs between two sessions of one file (memory layout, above all) does not show inside a pair of sessions:
`Settings.session_sd` adds it to the interval; the dense model against copies of itself tells how much it is
(`gate`).
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist, median
from typing import Any

from hwprune.latency.interval import decorrelate, median_interval

Run = Callable[[], object]
Seconds = Callable[[int], float]

CLOCKS = ("wall", "thread_cpu", "cuda_event")
SESSION_SD = 0.005
"""Standard deviation of ln(ratio) between sessions of one file before anything was measured (0.5 % on shared x86 machines)."""
PRIOR_SESSIONS = 4
"""How many measured sessions `SESSION_SD` counts for."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from; tests bring their own."""

    wall_ns: Callable[[], int] = time.perf_counter_ns
    cpu_ns: Callable[[], int] = time.thread_time_ns
    preemptions: Callable[[], int] = lambda: resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to measure.

    Attributes:
        clock: what ranks: ``thread_cpu`` (one-thread CPU runtimes), ``wall``, or ``cuda_event``.
        half_width: stop when the interval of ln(ratio) inside this pair of sessions is within +- this.
        limit_s: give up then and keep the wide interval.
        letter_s: shortest time of one letter: timer and scheduler noise are small against 2 ms.
        contended: a quad whose wall time exceeds its CPU time by this fraction was contended.
        session_sd: standard deviation of ln(ratio) between sessions, which the reported interval holds too; 0: leave it out.
    """

    clock: str = "thread_cpu"
    half_width: float = 0.01
    limit_s: float = 0.35
    letter_s: float = 0.002
    warmup_runs: int = 10
    warmup_limit_s: float = 0.2
    contended: float = 0.05
    alpha: float = 0.05
    most_quads: int = 1024
    session_sd: float = 0.0

    def __post_init__(self) -> None:
        if self.clock not in CLOCKS:
            raise ValueError(f"clock {self.clock!r} is not one of {', '.join(CLOCKS)}")

    def brief(self) -> Settings:
        """For a first look in a search, in a quarter of the time.

        Differences between sessions are not lessened by more time in one; and who ends on the front is measured again in fresh
        processes.
        """
        return replace(
            self, half_width=max(self.half_width, 0.02), limit_s=min(self.limit_s, 0.1), letter_s=min(self.letter_s, 0.001),
            warmup_runs=min(self.warmup_runs, 5), most_quads=min(self.most_quads, 64),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Timed:
    """One model as it is timed: a call, and the device's own timer where there is one."""

    run: Run
    seconds: Seconds | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """Seconds of one letter by each clock, for all its runs."""

    wall: float
    cpu: float
    device: float
    preemptions: int


@dataclass(frozen=True, slots=True)
class Paired:
    """What one paired measurement gave. Speedups are dense / candidate.

    Attributes:
        ci_low, ci_high: 95 % interval of the speedup, between sessions included if `Settings.session_sd` was given.
        wall_speedup: beside ``speedup`` when that is from another clock.
        contended: share of quads in which somebody else had the core.
        outliers: share of quads further from the median than five robust standard deviations.
        converged: the interval became narrow enough in time.
        samples: seconds of one run by quad: candidate and dense by the ranking clock and by wall time.
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
    outliers: float
    converged: bool
    session_sd: float
    log_ratios: tuple[float, ...]
    samples: dict[str, list[float]]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "log_ratios": [round(value, 6) for value in self.log_ratios]}


def measure(candidate: Run | Timed, dense: Run | Timed, settings: Settings, clock: Clock | None = None) -> Paired:
    """Time ``candidate`` against ``dense``."""
    clock = clock or Clock()
    first = candidate if isinstance(candidate, Timed) else Timed(candidate)
    second = dense if isinstance(dense, Timed) else Timed(dense)
    runs_a = _warm_up(first, settings, clock)
    runs_b = _warm_up(second, settings, clock)
    checks = [n for n in (16, 32, 64, 128, 256, 512, 1024) if n <= settings.most_quads] or [settings.most_quads]
    alpha = settings.alpha / len(checks)
    mine: list[Letter] = []
    other: list[Letter] = []
    start = clock.wall_ns()
    for n in checks:
        late = False
        while len(mine) < n and not late:
            a1, b1 = _letter(first, runs_a, clock), _letter(second, runs_b, clock)
            b2, a2 = _letter(second, runs_b, clock), _letter(first, runs_a, clock)
            mine.append(_mean(a1, a2, runs_a))
            other.append(_mean(b1, b2, runs_b))
            late = len(mine) >= 8 and (clock.wall_ns() - start) * 1e-9 > settings.limit_s
        ratios = _log_ratios(_ranked(mine, settings), _ranked(other, settings))
        estimate, low, high = median_interval(decorrelate(ratios), alpha)
        converged = (high - low) / 2 <= settings.half_width
        if converged or late:
            break
    own, dense_own = _ranked(mine, settings), _ranked(other, settings)
    low, high = with_sessions(estimate, low, high, settings.session_sd, settings.alpha)
    latency, latency_low, latency_high = median_interval(own, settings.alpha)
    busy = [_contended(a, settings) or _contended(b, settings) for a, b in zip(mine, other, strict=True)]
    return Paired(
        clock=settings.clock,
        speedup=math.exp(-estimate),
        ci_low=math.exp(-high),
        ci_high=math.exp(-low),
        latency_s=latency,
        latency_low_s=latency_low,
        latency_high_s=latency_high,
        dense_latency_s=median(dense_own),
        quads=len(mine),
        runs_a_letter=(runs_a, runs_b),
        wall_speedup=math.exp(-median(_log_ratios([x.wall for x in mine], [x.wall for x in other]))),
        wall_latency_s=median(x.wall for x in mine),
        contended=sum(busy) / len(busy),
        outliers=outlier_share(ratios),
        converged=converged,
        session_sd=settings.session_sd,
        log_ratios=tuple(ratios),
        samples={
            "candidate_s": _rounded(own), "dense_s": _rounded(dense_own),
            "candidate_wall_s": _rounded([x.wall for x in mine]), "dense_wall_s": _rounded([x.wall for x in other]),
        },
    )  # fmt: skip


def with_sessions(estimate: float, low: float, high: float, sd: float, alpha: float) -> tuple[float, float]:
    """The interval of ln(ratio) when the sessions are a sample too: both deviations, added as independent ones are."""
    more = NormalDist().inv_cdf(1 - alpha / 2) * sd
    return estimate - math.hypot(estimate - low, more), estimate + math.hypot(high - estimate, more)


def session_sd(log_ratios: Sequence[float]) -> float:
    """Deviation between sessions, from the dense model against copies of itself (truth 0), shrunk towards `SESSION_SD`."""
    total = PRIOR_SESSIONS * SESSION_SD**2 + sum(value**2 for value in log_ratios)
    return math.sqrt(total / (PRIOR_SESSIONS + len(log_ratios)))


def outlier_share(values: Sequence[float]) -> float:
    """Share of values further from the median than 5 robust standard deviations (1.4826 x median absolute deviation)."""
    centre = median(values)
    spread = 1.4826 * median(abs(v - centre) for v in values)
    return sum(abs(v - centre) > 5 * spread for v in values) / len(values) if spread > 0 else 0.0


def _ranked(letters: Sequence[Letter], settings: Settings) -> list[float]:
    if settings.clock == "thread_cpu":
        return [letter.cpu for letter in letters]
    return [letter.device if settings.clock == "cuda_event" else letter.wall for letter in letters]


def _contended(letter: Letter, settings: Settings) -> bool:
    """By CPU time where that is all the work, else by whether the calling thread lost its core."""
    if settings.clock == "thread_cpu":
        return letter.wall / max(letter.cpu, 1e-12) - 1 > settings.contended
    return settings.clock == "wall" and letter.preemptions > 0


def _log_ratios(a: list[float], b: list[float]) -> list[float]:
    return [math.log(max(x, 1e-12) / max(y, 1e-12)) for x, y in zip(a, b, strict=True)]


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _mean(first: Letter, second: Letter, runs: int) -> Letter:
    """Seconds of one run."""
    return Letter(
        (first.wall + second.wall) / (2 * runs),
        (first.cpu + second.cpu) / (2 * runs),
        (first.device + second.device) / (2 * runs),
        first.preemptions + second.preemptions,
    )


def _letter(timed: Timed, runs: int, clock: Clock) -> Letter:
    lost, wall, cpu = clock.preemptions(), clock.wall_ns(), clock.cpu_ns()
    device = 0.0
    if timed.seconds is not None:
        device = timed.seconds(runs)
    else:
        run = timed.run
        for _ in range(runs):
            run()
    cpu_s, wall_s = (clock.cpu_ns() - cpu) * 1e-9, (clock.wall_ns() - wall) * 1e-9
    return Letter(wall_s, cpu_s, device, clock.preemptions() - lost)


def _warm_up(timed: Timed, settings: Settings, clock: Clock) -> int:
    """Run until two successive blocks agree within 5 %; returns how many calls make one letter."""
    start = clock.wall_ns()
    before = 0.0
    while True:
        wall = _letter(timed, settings.warmup_runs, clock).wall
        if before and abs(wall - before) <= 0.05 * before:
            break
        if (clock.wall_ns() - start) * 1e-9 > settings.warmup_limit_s:
            break
        before = wall
    one = max(wall / settings.warmup_runs, 1e-9)
    return max(1, math.ceil(settings.letter_s / one))
