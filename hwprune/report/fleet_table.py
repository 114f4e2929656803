"""A front on several targets: what each measured, and where a choice helps one and hurts another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from hwprune.common import formatting
from hwprune.records.record import Record

SHOWN = 6
"""Pairs of points that are named at most."""


def targets_of(record: Record) -> list[str]:
    """Names of the targets, the first one first; empty where there is only one."""
    return [one["profile"]["name"] for one in record.data["target"].get("fleet", ())]


def measured_on(point: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Target -> ``speedup`` and ``latency``, each with ``value``, ``ci_low``, ``ci_high``; empty where there is only one."""
    found: dict[str, Any] = (point.get("speedup") or point.get("self_speedup") or {}).get("conditions", {}).get("targets", {})
    return found


def fleet_rows(record: Record) -> list[list[str]]:
    """The dense latency on each target, then the speedups of each point."""
    names = targets_of(record)
    if not names:
        return []
    dense = measured_on(record.data["baseline"])
    rows = [["dense", *(formatting.seconds(dense[name]["latency"]["value"]) if name in dense else "" for name in names)]]
    for point in record.data["front"]:
        found = measured_on(point)
        rows.append([f"trial {point['trial']}", *(_speedup(found[name]["speedup"]) if name in found else "" for name in names)])
    return rows


def _speedup(measured: dict[str, float]) -> str:
    return formatting.speedup(measured["value"], measured["ci_low"], measured["ci_high"])


def disagreements(record: Record) -> list[str]:
    """Pairs of points of which one is surely faster on one target, and the other on another; the widest gaps first."""
    points = [(point["trial"], measured_on(point)) for point in record.data["front"]]
    found: list[tuple[float, str]] = []
    for (one, a), (other, b) in combinations(points, 2):
        shared = [name for name in a if name in b]
        better = [name for name in shared if a[name]["speedup"]["ci_low"] > b[name]["speedup"]["ci_high"]]
        worse = [name for name in shared if a[name]["speedup"]["ci_high"] < b[name]["speedup"]["ci_low"]]
        if better and worse:
            gap = max(a[n]["speedup"]["value"] / b[n]["speedup"]["value"] for n in better)
            gap *= max(b[n]["speedup"]["value"] / a[n]["speedup"]["value"] for n in worse)
            found.append((gap, f"trial {one} is faster than trial {other} on {_and(better)}, and slower on {_and(worse)}"))
    return [text for _, text in sorted(found, reverse=True)[:SHOWN]]


def sentence(record: Record) -> str:
    """Do the targets agree on the front? Empty where there is only one."""
    if not targets_of(record) or not record.data["front"]:
        return ""
    differ = disagreements(record)
    if not differ:
        return "All targets agree on which of these points is faster, as far as their intervals tell."
    return f"The targets disagree: {'; '.join(differ)}."


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def columns(record: Record) -> list[str]:
    """The columns of a front's table that tell of each target."""
    ends = ("speedup", "speedup_ci_low", "speedup_ci_high", "latency_s")
    return [f"{end}:{name}" for name in targets_of(record) for end in ends]


def cells(record: Record, point: dict[str, Any]) -> dict[str, float]:
    """Their values for one point, or for the dense model."""
    found = measured_on(point)
    row: dict[str, float] = {}
    for name in targets_of(record):
        if name in found:
            speedup = found[name]["speedup"]
            row |= {
                f"speedup:{name}": speedup["value"], f"speedup_ci_low:{name}": speedup["ci_low"],
                f"speedup_ci_high:{name}": speedup["ci_high"], f"latency_s:{name}": found[name]["latency"]["value"],
            }  # fmt: skip
    return row
