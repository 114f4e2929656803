"""What must hold before a search starts or goes on."""

from __future__ import annotations

from pathlib import Path

from hwprune.errors import UsageError


def check_same_metric(run: Path, before: float, now: float, exact: bool) -> None:
    """The same data give the same dense metric; on another device a few answers may flip. Raises `UsageError`."""
    if abs(before - now) > (1e-6 if exact else 0.02) * max(1.0, abs(before)):
        raise UsageError(f"{run} was started with other validation data: the dense model scored {before:.6g}, now {now:.6g}")
