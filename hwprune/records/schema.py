"""What record.json must hold for reports and exports, and everything that is wrong with one, at once.

A record is written by hwprune and read by whoever it was sent to; what happened to it in between is not ours to guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

MOST = 12
"""Faults that are listed."""

Check = Callable[[Any, str, list[str]], None]


def faults(record: Any) -> list[str]:
    """Everything that is wrong, as ``where: what must hold``; empty: nothing."""
    listed: list[str] = []
    RECORD(record, "record", listed)
    if not listed:
        rows = {row["number"]: row for row in record["trials"]}
        numbers = set(rows)
        for group in ("front", "untrained", "trained", "quantised"):
            for place, point in enumerate(record.get(group, ())):
                if point["trial"] not in numbers:
                    listed.append(f"{group}[{place}].trial: {point['trial']} is no trial of the record")
                elif group in (origins := {"trained": "recovery", "quantised": "quantised"}) and not rows[point["trial"]].get(
                    origins[group]
                ):
                    listed.append(f"{group}[{place}].trial: trial {point['trial']} says nothing of {origins[group]}")
        for row in record["trials"]:
            for key in ("recovery", "quantised"):
                of = (row.get(key) or {}).get("of", "dense")
                if of != "dense" and (of not in numbers or of >= row["number"]):
                    listed.append(f"trial {row['number']}, {key}.of: {of!r} is no earlier trial")
    return listed[:MOST] + ([f"and {len(listed) - MOST} more"] if len(listed) > MOST else [])


def _text(value: Any, where: str, faults: list[str]) -> None:
    if not isinstance(value, str):
        faults.append(f"{where}: must be a text, got {_short(value)}")


def _number(value: Any, where: str, faults: list[str]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300 or not math.isfinite(value):
        faults.append(f"{where}: must be a finite number, got {_short(value)}")


def _whole(value: Any, where: str, faults: list[str]) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > 2**62:
        faults.append(f"{where}: must be a whole number, got {_short(value)}")


def _truth(value: Any, where: str, faults: list[str]) -> None:
    if not isinstance(value, bool):
        faults.append(f"{where}: must be true or false, got {_short(value)}")


def _positive(value: Any, where: str, faults: list[str]) -> None:
    before = len(faults)
    _number(value, where, faults)
    if len(faults) == before and not value > 0:
        faults.append(f"{where}: must be > 0, got {_short(value)}")


def _one_of(*choices: str) -> Check:
    def check(value: Any, where: str, faults: list[str]) -> None:
        if not isinstance(value, str) or value not in choices:
            faults.append(f"{where}: must be one of {', '.join(choices)}, got {_short(value)}")

    return check


def _or_none(inner: Check) -> Check:
    def check(value: Any, where: str, faults: list[str]) -> None:
        if value is not None:
            inner(value, where, faults)

    return check


def _list(inner: Check) -> Check:
    def check(value: Any, where: str, faults: list[str]) -> None:
        if not isinstance(value, list):
            faults.append(f"{where}: must be a list, got {_short(value)}")
            return
        for place, item in enumerate(value):
            inner(item, f"{where}[{place}]", faults)

    return check


def _map(inner: Check | None = None) -> Check:
    def check(value: Any, where: str, faults: list[str]) -> None:
        if not isinstance(value, dict):
            faults.append(f"{where}: must be a table, got {_short(value)}")
            return
        for key, item in value.items() if inner is not None else ():
            assert inner is not None
            inner(item, f"{where}.{key}", faults)

    return check


def _table(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    def check(value: Any, where: str, faults: list[str]) -> None:
        if not isinstance(value, dict):
            faults.append(f"{where}: must be a table, got {_short(value)}")
            return
        for key, inner in needed.items():
            if key in value:
                inner(value[key], f"{where}.{key}", faults)
            else:
                faults.append(f"{where}: lacks {key}")
        for key, inner in (optional or {}).items():
            if key in value:
                inner(value[key], f"{where}.{key}", faults)

    return check


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


_LOOSE = _map()
_MEASUREMENT = _table({"value": _number, "ci_low": _number, "ci_high": _number}, {"conditions": _LOOSE, "samples": _number})
_RATIO_CONDITIONS = _table(
    {}, {"clock": _text, "contended": _number, "processes": _whole, "converged": _truth, "throttled": _truth}
)
_RATIO = _table({"value": _positive, "ci_low": _positive, "ci_high": _positive, "conditions": _RATIO_CONDITIONS})
_SIZES = {"params": _whole, "macs": _or_none(_whole), "size_bytes": _whole}
_FOOTPRINT = _table({}, {"layers": _map(_number), "runtime": _LOOSE})
_CHOICE = _table({"unit": _text, "pattern": _text, "sparsity": _number, "method": _text})
_RECIPE = _table({"choices": _list(_CHOICE), "compensation": _text})
_TRAINED = _table(
    {"of": _whole, "plan": _table({"kind": _text, "epochs": _number}), "seconds": _number, "examples": _number},
    {"before": _number, "after": _number},
)


def _maker(value: Any, where: str, faults: list[str]) -> None:
    if value != "dense":
        _whole(value, where, faults)


_QUANTISED = _table({"of": _maker, "precision": _text, "layers": _whole, "weighted": _whole})
_POINT = _table(
    {
        "trial": _whole,
        "metric": _MEASUREMENT,
        "drop": _number,
        "latency": _MEASUREMENT,
        "speedup": _RATIO,
        "split": _text,
        **_SIZES,
    },
    {
        "footprint": _FOOTPRINT,
        "paired_drop": _MEASUREMENT,
        **dict.fromkeys(("told_drop", "told_high", "sure"), _or_none(_number)),
    },
)
_BOTH = {"number": _whole, "origin": _text, "digest": _text, "recipe": _RECIPE, "seconds": _map(_number)}
_DONE = _table(
    {
        **_BOTH,
        "metric": _MEASUREMENT,
        "drop": _number,
        "latency": _MEASUREMENT,
        "speedup": _RATIO,
        "params": _whole,
        "size_bytes": _whole,
    },
    {
        "recovery": _TRAINED,
        "quantised": _QUANTISED,
        "divergence": _table({"value": _number}),
        "predicted": _map(_number),
        "paired_drop": _MEASUREMENT,
        "estimated_drop": _MEASUREMENT,
    },
)
_ENDED = _table({**_BOTH, "failure": _table({"stage": _text, "reason": _text})}, {"divergence": _table({"value": _number})})


def _trial(value: Any, where: str, faults: list[str]) -> None:
    states = ("measured", "failed", "stopped")
    _table({"state": _one_of(*states)})(value, where, faults)
    if isinstance(value, dict) and value.get("state") in states:
        (_DONE if value["state"] == "measured" else _ENDED)(value, where, faults)


_LIMIT = _or_none(_number)
RECORD = _table(
    {
        "workload": _table({"name": _text, "metric": _text, "source": _text, "example_shapes": _list(_list(_whole))}),
        "target": _table(
            {"name": _text, "description": _text, "runtime": _text, "precision": _text},
            {"file": _text, "profile": _or_none(_LOOSE)},
        ),
        "baseline": _table(
            {"metric": _MEASUREMENT, "latency": _MEASUREMENT, "self_speedup": _RATIO, **_SIZES},
            {"test_metric": _or_none(_MEASUREMENT), "footprint": _FOOTPRINT},
        ),
        "trials": _list(_trial),
        "front": _list(_POINT),
        "space": _table(
            {
                "name": _text,
                "size_log10": _number,
                "compensation": _text,
                "left_out": _list(_table({"name": _text, "reason": _text})),
                "units": _list(_table({"name": _text, "role": _text, "size": _whole}, {"saves": _list(_list(_number))})),
            },
            {"channel_multiple": _whole},
        ),
        "fingerprint": _table({"identity": _LOOSE, "conditions": _table({}, {"load_average": _list(_number)})}),
        "versions": _table({"hwprune": _text}),
        "job": _table(
            {"max_drop": _LIMIT, "sampler": _text, "seed": _whole},
            dict.fromkeys(("min_speedup", "max_latency_s", "max_size"), _LIMIT),
        ),
        "notes": _list(_text),
        "finished": _truth,
        "written": _text,
    },
    {
        "latency_source": _one_of("measured", "table", "estimated"),
        "self_checks": _list(_table({"trials": _whole, "value": _positive, "ci_low": _positive, "ci_high": _positive})),
        **dict.fromkeys(("untrained", "trained", "quantised"), _list(_POINT)),
    },
)
