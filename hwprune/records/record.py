"""Reading record.json: what reports and exports know of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwprune.common.files import read_json
from hwprune.errors import UsageError
from hwprune.records import schema

Record = dict[str, Any]

MEASURED = "measured"
"""The latency source whose numbers may be called speedup without more words."""

_NEEDED = ("workload", "target", "baseline", "trials", "front", "space", "fingerprint", "versions", "job", "notes")


def read_record(run: Path) -> Record:
    """The record of a run directory. Raises `UsageError` if there is none or it isn't one."""
    path = run / "record.json"
    if not path.is_file():
        raise UsageError(f"{run} holds no record.json: is it a run directory of hwprune?")
    record = read_json(path)
    if not isinstance(record, dict) or record.get("schema") != 1:
        raise UsageError(f"{path} is not a record of schema 1")
    missing = [key for key in _NEEDED if key not in record]
    if missing:
        raise UsageError(f"{path} lacks {', '.join(missing)}")
    if wrong := schema.faults(record):
        raise UsageError(f"{path} has faults (hwprune has not written it like this):", wrong)
    return record


def latency_source(record: Record) -> str:
    """``measured``, ``table`` or ``estimated``."""
    return str(record.get("latency_source", "measured"))


def model_file(record: Record) -> str:
    """Name of the model's file in a candidate's folder: what the target's runtime runs."""
    return str(record["target"].get("file", "model.onnx"))


def front_file(record: Record) -> str:
    """Name of the front's table: what was not measured never goes by the name front.csv."""
    source = latency_source(record)
    return "front.csv" if source == "measured" else f"front.{source}.csv"


def trial(record: Record, number: int) -> dict[str, Any]:
    """One trial by its number."""
    for row in record["trials"]:
        if row["number"] == number:
            found: dict[str, Any] = row
            return found
    raise UsageError(f"the run has no trial {number}")


def dense_metric(record: Record) -> dict[str, Any]:
    """The dense model's metric on the split that the front is scored on."""
    found: dict[str, Any] = record["baseline"].get("test_metric") or record["baseline"]["metric"]
    return found


def recipe_text(recipe: dict[str, Any]) -> str:
    """One line: unit pattern sparsity method; ..."""
    parts = [f"{c['unit']} {c['pattern']} {c['sparsity']:.3g} {c['method']}" for c in recipe["choices"]]
    return "; ".join(parts) or "dense"
