"""Latency over keep counts: which widths are worth proposing, and the channel multiple of a runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MULTIPLES = (64, 32, 16, 8, 4, 2, 1)
TOLERANCE = 0.06
"""How much slower the next multiple may measure and still count as free: twice what micro-measurements repeat within."""
AGREE = 0.85
"""Share of the counts for which it must be free."""


def detected_multiple(times: Mapping[int, float], tolerance: float = TOLERANCE) -> int:
    """The largest multiple to which a count can be rounded up for nothing.

    That is what a user wants to know: with multiple 16, keeping 17 channels costs what 32 do (or more). A multiple counts if for
    at least `AGREE` of the measured counts the next multiple up is not slower than ``1 + tolerance`` times, and if rounding up
    is not free everywhere, which a flat curve (launch-bound, say) is: then 1.

    Args:
        times: keep count -> seconds; the counts should be dense over at least two steps.
    """
    counts = sorted(times)
    top = counts[-1]
    for multiple in MULTIPLES:
        ups = [(k, -(-k // multiple) * multiple) for k in counts]
        judged = [(k, up) for k, up in ups if up <= top and up in times and k != up]
        if multiple == 1:
            return 1
        if len(judged) < multiple // 2 or len({up for _, up in judged}) < 2:
            continue
        free = sum(times[up] <= times[k] * (1 + tolerance) for k, up in judged)
        if free >= AGREE * len(judged) and _falls(times, multiple, tolerance):
            return multiple
    return 1


def _falls(times: Mapping[int, float], multiple: int, tolerance: float) -> bool:
    """Does it pay to go down by whole multiples? On a flat curve every multiple would be free."""
    ends = sorted(k for k in times if k % multiple == 0)
    return len(ends) >= 2 and times[ends[0]] < times[ends[-1]] * (1 - tolerance)


def worthwhile(times: Mapping[int, float], tolerance: float = 0.01) -> list[int]:
    """Counts at the end of a stair, largest first: no larger count is as fast."""
    found: list[int] = []
    best = float("inf")
    for count in sorted(times, reverse=True):
        if times[count] < best * (1 - tolerance) or not found:
            found.append(count)
            best = times[count]
    return found


def counts_for(size: int, points: int, step: int) -> list[int]:
    """Keep counts to measure: multiples of ``step``, at most ``points`` of them, the size itself included."""
    found = list(range(step, size, step))
    if len(found) > points - 1:
        last = len(found) - 1
        found = sorted({found[round(i * last / max(1, points - 2))] for i in range(points - 1)})
    return [*found, size]


def window(size: int, widest: int) -> Sequence[int]:
    """Every count of the upper part of an axis, where the multiple is looked for."""
    return range(max(1, size - widest + 1), size + 1)
