"""Latency of many small pieces against one fixed reference: what fills the table.

CutSegments take microseconds, so nothing is paired two by two; instead all pieces of a group and the reference run in turn, round
after round, and each round's time is divided by the reference's of the same round. What slows the machine for a second slows
all of them. The cost of a call that does nothing is measured the same way and subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hwprune.latency.paired import Clock, Timed
from hwprune.runtimes.base import OWN_TIMERS

ROUNDS = 11
OWN = ("reference", "nothing", "next-to-nothing")
"""Pieces of every folder: what all are compared with, a model that computes nothing, and one that computes a single number, for
runtimes that can't load the former."""
BLOCK_S = 0.001


@dataclass(frozen=True, slots=True)
class Micro:
    """Seconds of one run, in units of the reference: ``ratio`` with the half-width of its 95 % interval."""

    ratio: float
    half_width: float


def measure(
    pieces: Sequence[Timed], reference: Timed, nothing: Timed, which: str, rounds: int = ROUNDS, clock: Clock | None = None
) -> tuple[list[Micro], float, float]:
    """Ratios of the pieces to the reference (both without the cost of a call), the reference's seconds and a call's seconds.

    Args:
        which: the clock: ``thread_cpu``, ``wall``, ``cuda_event`` or ``process``.
    """
    clock = clock or Clock()
    everybody = [reference, nothing, *pieces]
    runs = [_runs(timed, which, clock) for timed in everybody]
    times: list[list[float]] = [[] for _ in everybody]
    for number in range(rounds):
        order = list(range(len(everybody)))
        if number % 2:
            order.reverse()
        for index in order:
            times[index].append(_time(everybody[index], runs[index], which, clock))
    call_s = median(times[1])
    base = median(times[0])
    reference_s = max(base - call_s, 1e-9)
    results = []
    for series in times[2:]:
        ratios = sorted(
            max(t - call_s * r / base, 1e-9) / reference_s * (base / r) for t, r in zip(series, times[0], strict=True)
        )
        middle = median(ratios)
        spread = 1.4826 * median(abs(x - middle) for x in ratios)
        # The standard error of a median is 1.25 times that of a mean.
        results.append(Micro(middle, 1.96 * 1.25 * spread / len(ratios) ** 0.5))
    return results, reference_s, call_s


def _runs(timed: Timed, which: str, clock: Clock) -> int:
    """Warm up; how many runs last `BLOCK_S`."""
    for _ in range(3):
        timed.run()
    return max(1, round(BLOCK_S / max(_time(timed, 3, which, clock), 1e-7)))


def _time(timed: Timed, runs: int, which: str, clock: Clock) -> float:
    """Seconds of one run."""
    if which in OWN_TIMERS and timed.seconds is not None:
        return timed.seconds(runs) / runs
    read = clock.cpu_ns if which == "thread_cpu" else clock.wall_ns
    start = read()
    for _ in range(runs):
        timed.run()
    return (read() - start) * 1e-9 / runs
