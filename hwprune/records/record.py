"""Reading record.json: what reports and exports know of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.common.files import Table, read_json
from hwprune.errors import UsageError
from hwprune.records import schema
from hwprune.records.measurement import Measurement

MEASURED = "measured"
"""The latency source whose numbers may be called speedup without more words."""

_NEEDED = ("workload", "target", "baseline", "trials", "front", "space", "fingerprint", "versions", "job", "notes")


@dataclass(frozen=True, slots=True)
class Point:
    """A point of the front, confirmed.

    Attributes:
        trial: number of its trial, and of its folder.
        drop: of the metric against dense, on ``split``.
        latency: seconds of one batch.
        speedup: dense latency / its latency.
        told_drop, told_high: what validation said of the drop before, and what it is surely below; None: an older record.
        split: ``test``, or ``validation`` where there is no test split.
    """

    trial: int
    metric: Measurement
    drop: float
    latency: Measurement
    speedup: Measurement
    size_bytes: int
    split: str
    told_drop: float | None = None
    told_high: float | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Point:
        """A point of a record that `hwprune.records.schema` has checked."""
        metric, latency, speedup = (
            Measurement.from_table(Table(dict(data[name]), f"point {data['trial']}, {name}"))
            for name in ("metric", "latency", "speedup")
        )
        told = (None if data.get(name) is None else float(data[name]) for name in ("told_drop", "told_high"))
        return cls(
            int(data["trial"]), metric, float(data["drop"]), latency, speedup, int(data["size_bytes"]), data["split"], *told
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Record:
    """A run as record.json tells it.

    Attributes:
        data: the whole file, for reports and manifests; its schema is in docs/files.md.
        front: the confirmed front, slowest first; empty while the search runs.
    """

    data: dict[str, Any]
    front: tuple[Point, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """A record that `hwprune.records.schema` has checked."""
        return cls(data, tuple(Point.from_json(point) for point in data["front"]))

    @property
    def latency_source(self) -> str:
        """``measured``, ``table`` or ``estimated``."""
        return str(self.data.get("latency_source", MEASURED))

    @property
    def measured(self) -> bool:
        """Are latencies measured, not predicted or estimated?"""
        return self.latency_source == MEASURED

    @property
    def target_label(self) -> str:
        """The target's name; of several all names, and which speedup counts."""
        fleet = self.data["target"].get("fleet")
        if not fleet:
            return str(self.data["target"]["name"])
        weights = [one["weight"] for one in fleet]
        names = [one["profile"]["name"] for one in fleet]
        if None in weights:
            return f"{', '.join(names)} (the worst counts)"
        return f"{', '.join(f'{name}={weight:g}' for name, weight in zip(names, weights, strict=True))} (the mean counts)"

    @property
    def model_file(self) -> str:
        """Name of the model's file in a candidate's folder: what the target's runtime runs."""
        return str(self.data["target"].get("file", "model.onnx"))

    @property
    def front_file(self) -> str:
        """Name of the front's table: what was not measured never goes by the name front.csv."""
        return "front.csv" if self.measured else f"front.{self.latency_source}.csv"

    @property
    def dense_metric(self) -> dict[str, Any]:
        """The dense model's metric on the split that the front is scored on, as JSON."""
        metric: dict[str, Any] = self.data["baseline"].get("test_metric") or self.data["baseline"]["metric"]
        return metric

    def trial(self, number: int) -> dict[str, Any]:
        """One trial by its number, as JSON. Raises `UsageError` if there is none."""
        for row in self.data["trials"]:
            if row["number"] == number:
                trial: dict[str, Any] = row
                return trial
        raise UsageError(f"the run has no trial {number}")


LANGUAGE = "language"
"""``kind`` in the record of a language model's search."""


def read_record(run: Path) -> Record:
    """The record of a run directory. Raises `UsageError` if there is none or it isn't one."""
    path = run / "record.json"
    if not path.is_file():
        raise UsageError(f"{run} holds no record.json: is it a run directory of hwprune?")
    data = read_json(path)
    if not isinstance(data, dict) or data.get("schema") != 1:
        raise UsageError(f"{path} is not a record of schema 1")
    if data.get("kind") == LANGUAGE:
        raise UsageError(
            f"{run} is the search of a language model: its points are the folders in candidates/, which transformers loads, and "
            "this command is for other searches (`hwprune report` writes its page anew)"
        )
    missing = [key for key in _NEEDED if key not in data]
    if missing:
        raise UsageError(f"{path} lacks {', '.join(missing)}")
    if wrong := schema.faults(data):
        raise UsageError(f"{path} has faults (hwprune has not written it like this):", wrong)
    return Record.from_json(data)


def recipe_text(recipe: dict[str, Any]) -> str:
    """One line: unit pattern sparsity method; ..."""
    parts = [f"{c['unit']} {c['pattern']} {c['sparsity']:.3g} {c['method']}" for c in recipe["choices"]]
    return "; ".join(parts) or "dense"
