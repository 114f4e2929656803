"""Everything that is wrong with a record.json, at once.

A record is written by hwprune and read by whoever it was sent to; what happened to it in between is not ours to guess. Types and
keys are in ``record.schema.json`` beside this module, a JSON Schema for anybody's tools; what one part says of another is checked
here.
"""

from __future__ import annotations

from typing import Any

from hwprune.common import json_schema

MOST = 12
"""Faults that are listed."""


def faults(record: Any) -> list[str]:
    """Everything that is wrong, as ``place must be ..., got ...``; empty: nothing."""
    listed = json_schema.faults(record, "hwprune.records", "record.schema.json") or _between(record)
    return listed[:MOST] + ([f"and {len(listed) - MOST} more"] if len(listed) > MOST else [])


def _between(record: dict[str, Any]) -> list[str]:
    """Trials that other parts of the record name, and that are not there or say something else."""
    listed: list[str] = []
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
    return listed
