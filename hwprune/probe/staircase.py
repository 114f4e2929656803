"""Latency over keep counts: which widths are worth proposing, and the channel multiple of a runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MULTIPLES = (64, 32, 16, 8, 4, 2)
FREE = 0.3
"""Rounding up is called free if time grows by less than this share of what it would if it were proportional to the width."""


def detected_multiple(times: Mapping[int, float]) -> int:
    """The largest multiple to which a count can be rounded up for nothing; 1 if there is none.

    That is what a user wants to know: with multiple 16, keeping 17 channels costs what 32 do (or more). A multiple counts if
    rounding up to it is free against the count itself and against its half, both on average over all counts, which bears the few
    per cent of noise that one micro-measurement has. On a flat curve (launch-bound, say) everything is free: nothing is found.

    Args:
        times: keep count -> seconds; the counts should be dense over at least two steps.
    """
    times = {count: max(seconds, 1e-9) for count, seconds in times.items()}
    for multiple in MULTIPLES:
        ends = [k for k in sorted(times) if k % multiple == 0]
        if len(ends) < 2 or times[ends[0]] > 0.95 * times[ends[-1]]:
            continue  # too few to judge, or going down by whole multiples does not pay
        if _growth(times, 1, multiple) <= FREE and _growth(times, multiple // 2, multiple) <= FREE:
            return multiple
    return 1


def _growth(times: Mapping[int, float], fine: int, coarse: int) -> float:
    """The growth of time when counts are rounded up to ``coarse``, not to ``fine``: 1 is proportional to the width, 0 free."""
    pairs = [(-(-k // fine) * fine, -(-k // coarse) * coarse) for k in times]
    pairs = [(a, b) for a, b in pairs if a != b and a in times and b in times]
    width = sum(math.log(b / a) for a, b in pairs)
    return sum(math.log(times[b] / times[a]) for a, b in pairs) / width if width else math.inf


def worthwhile(times: Mapping[int, float], tolerance: float = 0.01) -> list[int]:
    """Counts at the end of a stair, largest first: no larger count is as fast."""
    ends: list[int] = []
    best = float("inf")
    for count in sorted(times, reverse=True):
        if times[count] < best * (1 - tolerance) or not ends:
            ends.append(count)
            best = times[count]
    return ends


def counts_for(size: int, points: int, step: int) -> list[int]:
    """Keep counts to measure: multiples of ``step``, at most ``points`` of them, the size itself included."""
    counts = list(range(step, size, step))
    if len(counts) > points - 1:
        last = len(counts) - 1
        counts = sorted({counts[round(i * last / max(1, points - 2))] for i in range(points - 1)})
    return [*counts, size]


def window(size: int, widest: int) -> Sequence[int]:
    """Every count of the upper part of an axis, where the multiple is looked for."""
    return range(max(1, size - widest + 1), size + 1)
