"""SI numbers to text. The only place where a number gets a unit prefix."""

from __future__ import annotations

import math


def seconds(value: float) -> str:
    """0.00123 -> '1.23 ms'."""
    if not math.isfinite(value):
        return "?"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{_three_digits(value / 1e-9)} ns"


def duration(value: float) -> str:
    """75 -> '1:15', 4000 -> '1:06:40'."""
    total = max(0, round(value))
    hours, rest = divmod(total, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def size(value: float) -> str:
    """1200000 -> '1.20 MB' (decimal prefixes)."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{value:.0f} B"


def count(value: float) -> str:
    """1200000 -> '1.20 M'."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{value:.0f}"


def some(number: int, noun: str) -> str:
    """1, 'finalist' -> '1 finalist'; 3 -> '3 finalists'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(fraction: float) -> str:
    """0.125 -> '12.5 %'."""
    return f"{100 * fraction:.1f} %"


def drop(value: float, *, share: bool) -> str:
    """0.004 -> '0.4 points' of a share, else '+0.004' in the metric's own unit."""
    return f"{100 * value:.1f} points" if share else f"{value:+.4g}"


def is_share(dense: float, *, higher_is_better: bool) -> bool:
    """Is a metric a share of right answers, or the like, which is read in per cent? By the dense model's value."""
    return higher_is_better and 0 <= dense <= 1


def usual_limit(dense: float, *, share: bool) -> float:
    """The drop that is looked at where the user gives no limit: one point of a share, else 5 % of the dense model's value."""
    return 0.01 if share or not math.isfinite(dense) else float(f"{abs(dense) / 20:.2g}")


def speedup(value: float, low: float | None = None, high: float | None = None) -> str:
    """1.5, 1.48, 1.52 -> '1.50x [1.48, 1.52]'."""
    text = f"{value:.2f}x"
    return text if low is None or high is None else f"{text} [{low:.2f}, {high:.2f}]"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
