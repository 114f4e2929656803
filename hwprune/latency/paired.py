"""Paired latency of two models in one process.

Quads A B B A (A candidate, B dense), each a block of calls that lasts at least `Settings.block_s`; per
quad d = ln((A1 + A2) / (B1 + B2)), which cancels linear drift; the estimate is the median of d with an
order-statistic interval; checks at 16, 32, 64 ... quads share the error probability (Bonferroni), because
looking often inflates it.

Wall time and the CPU time of the calling thread are both read: in that thread a CPU runtime with one intra-op thread
does all its work. On a shared machine a short run is preempted less often than a long one, so wall time is biased even when
paired; CPU time is not. Where the two differ by much the quad was contended. A GPU's own events are the third clock.

What differs between two sessions of one file (memory layout, above all) does not show inside a pair of sessions:
`Settings.session_sd` adds it to the interval; the dense model against copies of itself tells how much it is
(`gate`). One file because settings, clocks and estimate are one procedure.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist, fmean, median
from typing import Any

from hwprune.common.files import Table
from hwprune.latency.interval import correlated_median_interval, decorrelate, median_interval
from hwprune.records.measurement import Measurement
from hwprune.runtimes.base import OWN_TIMERS, THREAD_CPU, WALL

Run = Callable[[], object]
Seconds = Callable[[int], float]

CLOCKS = (WALL, THREAD_CPU, *OWN_TIMERS)
SESSION_SD = 0.005
"""Standard deviation of ln(ratio) between sessions of one file before anything was measured (0.5 % on shared x86 machines)."""
WARMUP_BLOCKS = 4
"""Blocks that a slow model's warm-up is divided into, so that it may end before its time."""
PRIOR_SESSIONS = 4
"""The number of measured sessions that `SESSION_SD` counts for."""


@dataclass(frozen=True, slots=True)
class Clock:
    """The source of time; tests bring their own."""

    wall_ns: Callable[[], int] = time.perf_counter_ns
    cpu_ns: Callable[[], int] = time.thread_time_ns
    preemptions: Callable[[], int] = lambda: resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


@dataclass(frozen=True, slots=True)
class Settings:
    """The rule of how long to measure.

    Attributes:
        clock: what ranks: ``thread_cpu`` (one-thread CPU runtimes), ``wall``, ``cuda_event``, or ``process``, the clock of a
            runtime's own process.
        half_width: stop when the interval of ln(ratio) inside this pair of sessions is within +- this.
        limit_s: give up then and keep the wide interval.
        block_s: shortest time of one block: timer and scheduler noise are small against 2 ms.
        contended: a quad whose wall time exceeds its CPU time by this fraction was contended.
        fewest_quads: however late it is; less than 8 give an interval within the session that says little.
        session_sd: standard deviation of ln(ratio) between sessions, which the reported interval holds too; 0: leave it out.
    """

    clock: str = "thread_cpu"
    half_width: float = 0.01
    limit_s: float = 0.35
    block_s: float = 0.002
    warmup_runs: int = 10
    warmup_limit_s: float = 0.2
    contended: float = 0.05
    alpha: float = 0.05
    most_quads: int = 1024
    fewest_quads: int = 8
    session_sd: float = 0.0

    def __post_init__(self) -> None:
        if self.clock not in CLOCKS:
            raise ValueError(f"clock {self.clock!r} is not one of {', '.join(CLOCKS)}")

    def brief(self) -> Settings:
        """These settings for a first look in a search, in a quarter of the time.

        Differences between sessions are not lessened by more time in one; and who ends on the front is measured again in fresh
        processes.
        """
        return replace(
            self, half_width=max(self.half_width, 0.02), limit_s=min(self.limit_s, 0.1), block_s=min(self.block_s, 0.001),
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
class BlockTime:
    """Seconds of one block by each clock, for all its runs."""

    wall: float
    cpu: float
    device: float
    preemptions: int


@dataclass(frozen=True, slots=True)
class Paired:
    """What one paired measurement gave: the value that travels from the stopwatch to the record.

    Attributes:
        speedup: dense latency / candidate latency by the ranking clock, with its 95 % interval, in which differences between
            sessions are included if `Settings.session_sd` was given. Its conditions: ``clock``; ``wall_speedup``; ``contended``,
            the share of quads in which somebody else had the core; ``outliers``, the share further from the median than five
            robust standard deviations; ``converged``, whether the interval became narrow enough in time; ``throttled``, whether
            the device slowed itself down; ``machine``, its load and clocks afterwards; ``passed``, of the dense model against
            copies of itself.
        latency: median seconds of one batch of the candidate, with its 95 % interval. Its conditions: ``wall_s``, ``dense_s``,
            and ``from`` where it is no median but follows from the speedup.
        samples: seconds of one run by quad: candidate and dense by the ranking clock and by wall time.
        runs_a_block: runs of the candidate and of dense in one block.
        again: how often it was measured again because the first result was implausible.
        parts: target's name -> what it measured, where there are several (`hwprune.latency.fleet`).
    """

    speedup: Measurement
    latency: Measurement
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    runs_a_block: tuple[int, int] = (1, 1)
    again: int = 0
    parts: Mapping[str, Paired] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Dense latency / candidate latency."""
        return self.speedup.value

    @property
    def dense_latency_s(self) -> float:
        return float(self.latency.conditions["dense_s"])

    @property
    def clock(self) -> str:
        """The clock that ranks."""
        return str(self.speedup.conditions["clock"])

    @property
    def passed(self) -> bool:
        """Is the machine quiet enough to rank by? (For the dense model against copies of itself.)"""
        return bool(self.speedup.conditions.get("passed", True))

    def with_speedup(self, value: float, low: float, high: float) -> Paired:
        """This measurement with another speedup and interval."""
        return replace(self, speedup=replace(self.speedup, value=value, ci_low=low, ci_high=high))

    def with_conditions(self, **conditions: Any) -> Paired:
        """This measurement with more, or other, conditions of its speedup."""
        return replace(self, speedup=replace(self.speedup, conditions={**self.speedup.conditions, **conditions}))

    def to_json(self) -> dict[str, Any]:
        return {
            "speedup": self.speedup.to_json(), "latency": self.latency.to_json(), "samples": dict(self.samples),
            "runs_a_block": list(self.runs_a_block), "again": self.again,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Paired:
        """The result that the measuring process sent."""
        table = Table(dict(data), "a measurement")
        speedup, latency = (Measurement.from_table(table.table(name)) for name in ("speedup", "latency"))
        first, second = data["runs_a_block"]
        return cls(speedup, latency, data["samples"], (int(first), int(second)), int(data["again"]))


def measure(candidate: Run | Timed, dense: Run | Timed, settings: Settings, clock: Clock | None = None) -> Paired:
    """Time ``candidate`` against ``dense``."""
    clock = clock or Clock()
    first = candidate if isinstance(candidate, Timed) else Timed(candidate)
    second = dense if isinstance(dense, Timed) else Timed(dense)
    runs_a = _warm_up(first, settings, clock)
    runs_b = _warm_up(second, settings, clock)
    checks = [n for n in (16, 32, 64, 128, 256, 512, 1024) if n <= settings.most_quads] or [settings.most_quads]
    alpha = settings.alpha / len(checks)
    candidate_blocks: list[BlockTime] = []
    dense_blocks: list[BlockTime] = []
    start = clock.wall_ns()
    for n in checks:
        late = False
        while len(candidate_blocks) < n and not late:
            a1, b1 = _block(first, runs_a, clock), _block(second, runs_b, clock)
            b2, a2 = _block(second, runs_b, clock), _block(first, runs_a, clock)
            candidate_blocks.append(_mean(a1, a2, runs_a))
            dense_blocks.append(_mean(b1, b2, runs_b))
            late = len(candidate_blocks) >= settings.fewest_quads and (clock.wall_ns() - start) * 1e-9 > settings.limit_s
        ratios = _log_ratios(_ranked(candidate_blocks, settings), _ranked(dense_blocks, settings))
        estimate, low, high = median_interval(decorrelate(ratios), alpha)
        converged = (high - low) / 2 <= settings.half_width
        if converged or late:
            break
    candidate_s, dense_s = _ranked(candidate_blocks, settings), _ranked(dense_blocks, settings)
    low, high = with_sessions(estimate, low, high, settings.session_sd, settings.alpha)
    latency, latency_low, latency_high = correlated_median_interval(candidate_s, settings.alpha)
    busy = [_contended(a, settings) or _contended(b, settings) for a, b in zip(candidate_blocks, dense_blocks, strict=True)]
    conditions = {
        "clock": settings.clock,
        "wall_speedup": math.exp(-median(_log_ratios([x.wall for x in candidate_blocks], [x.wall for x in dense_blocks]))),
        "contended": sum(busy) / len(busy),
        "outliers": outlier_share(ratios),
        "throttled": False,
        "converged": converged,
        "quads": len(candidate_blocks),
        "session_sd": settings.session_sd,
        "log_ratios": [round(value, 6) for value in ratios],
    }
    times = {"clock": settings.clock, "wall_s": median(x.wall for x in candidate_blocks), "dense_s": median(dense_s)}
    return Paired(
        Measurement(math.exp(-estimate), "x", math.exp(-high), math.exp(-low), len(candidate_blocks), conditions),
        Measurement(latency, "s", latency_low, latency_high, len(candidate_blocks), times),
        {
            "candidate_s": _rounded(candidate_s), "dense_s": _rounded(dense_s),
            "candidate_wall_s": _rounded([x.wall for x in candidate_blocks]),
            "dense_wall_s": _rounded([x.wall for x in dense_blocks]),
        },
        (runs_a, runs_b),
    )  # fmt: skip


def with_sessions(estimate: float, low: float, high: float, sd: float, alpha: float) -> tuple[float, float]:
    """The interval of ln(ratio) when the sessions are a sample too: both deviations, added as independent ones are."""
    more = NormalDist().inv_cdf(1 - alpha / 2) * sd
    return estimate - math.hypot(estimate - low, more), estimate + math.hypot(high - estimate, more)


def combine_one(parts: Mapping[str, Paired]) -> Paired:
    """The result of the one target that there is; of several see `hwprune.latency.fleet`."""
    (result,) = parts.values()
    return result


def geometric_mean(sessions: Sequence[Paired], combine: Callable[[Mapping[str, Paired]], Paired] = combine_one) -> Paired:
    """Sessions of the same two files as one: the last one's, with their mean speedup, and the latency that goes with it.

    Each interval holds the differences between sessions already, so the deviations add up as those of independent values do.

    Args:
        combine: makes one result of several targets', each of which has its own mean.
    """
    if names := list(sessions[-1].parts):
        return combine({name: geometric_mean([session.parts[name] for session in sessions]) for name in names})
    logs = [math.log(session.ratio) for session in sessions]
    below = [log - math.log(session.speedup.ci_low) for log, session in zip(logs, sessions, strict=True)]
    above = [math.log(session.speedup.ci_high) - log for log, session in zip(logs, sessions, strict=True)]
    mean, count = fmean(logs), len(sessions)
    ratio, low, high = (math.exp(x) for x in (mean, mean - math.hypot(*below) / count, mean + math.hypot(*above) / count))
    last = sessions[-1]
    dense_s, conditions = last.dense_latency_s, {**last.latency.conditions, "from": "dense_s / speedup"}
    latency = replace(last.latency, value=dense_s / ratio, ci_low=dense_s / high, ci_high=dense_s / low, conditions=conditions)
    return replace(last.with_speedup(ratio, low, high), latency=latency)


def session_sd(log_ratios: Sequence[float]) -> float:
    """Deviation between sessions, from the dense model against copies of itself (truth 0), shrunk towards `SESSION_SD`."""
    total = PRIOR_SESSIONS * SESSION_SD**2 + sum(value**2 for value in log_ratios)
    return math.sqrt(total / (PRIOR_SESSIONS + len(log_ratios)))


def outlier_share(values: Sequence[float]) -> float:
    """Share of values further from the median than 5 robust standard deviations (1.4826 x median absolute deviation)."""
    centre = median(values)
    spread = 1.4826 * median(abs(v - centre) for v in values)
    return sum(abs(v - centre) > 5 * spread for v in values) / len(values) if spread > 0 else 0.0


def _ranked(blocks: Sequence[BlockTime], settings: Settings) -> list[float]:
    if settings.clock == "thread_cpu":
        return [block.cpu for block in blocks]
    return [block.device if settings.clock in OWN_TIMERS else block.wall for block in blocks]


def _contended(block: BlockTime, settings: Settings) -> bool:
    """Was the machine busy? CPU time tells where that is all the work, else whether the calling thread lost its core."""
    if settings.clock == "thread_cpu":
        return block.wall / max(block.cpu, 1e-12) - 1 > settings.contended
    return settings.clock == "wall" and block.preemptions > 0


def _log_ratios(a: list[float], b: list[float]) -> list[float]:
    return [math.log(max(x, 1e-12) / max(y, 1e-12)) for x, y in zip(a, b, strict=True)]


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _mean(first: BlockTime, second: BlockTime, runs: int) -> BlockTime:
    """Seconds of one run."""
    return BlockTime(
        (first.wall + second.wall) / (2 * runs),
        (first.cpu + second.cpu) / (2 * runs),
        (first.device + second.device) / (2 * runs),
        first.preemptions + second.preemptions,
    )


def _block(timed: Timed, runs: int, clock: Clock) -> BlockTime:
    lost, wall, cpu = clock.preemptions(), clock.wall_ns(), clock.cpu_ns()
    device = 0.0
    if timed.seconds is not None:
        device = timed.seconds(runs)
    else:
        run = timed.run
        for _ in range(runs):
            run()
    cpu_s, wall_s = (clock.cpu_ns() - cpu) * 1e-9, (clock.wall_ns() - wall) * 1e-9
    return BlockTime(wall_s, cpu_s, device, clock.preemptions() - lost)


def _warm_up(timed: Timed, settings: Settings, clock: Clock) -> int:
    """Run until two successive blocks agree within 5 %; returns how many calls make one block."""
    start = clock.wall_ns()
    before = 0.0
    first = min(_block(timed, 1, clock).wall for _ in range(2))  # the first call of all may prepare things
    runs = max(1, min(settings.warmup_runs, round(settings.warmup_limit_s / WARMUP_BLOCKS / max(first, 1e-9))))
    while True:
        wall = _block(timed, runs, clock).wall
        if before and abs(wall - before) <= 0.05 * before:
            break
        if (clock.wall_ns() - start) * 1e-9 > settings.warmup_limit_s:
            break
        before = wall
    run_s = max(wall / runs, 1e-9)
    return max(1, math.ceil(settings.block_s / run_s))
