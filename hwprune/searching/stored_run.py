"""A run directory as a `Result`, whether its search is finished, runs still, or was killed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwprune.common.files import Table
from hwprune.errors import UsageError
from hwprune.records.measurement import Measurement
from hwprune.records.record import Point, Record, read_record
from hwprune.records.trial import Trial
from hwprune.searching.job import FILE
from hwprune.searching.result import FrontPoint, Result

ENDED = ("converged after", "space is exhausted", "sweep is finished")
"""What a note says of a search that ended before its last trial because there was nothing left."""


def load(run: str | Path) -> Result:
    """The result of a run, finished or not. Nothing is measured or run again.

        >>> result = hwprune.load(RUN)
        >>> result.finished
        True
        >>> [point.trial.number for point in result.points] == [trial.number for trial in result.front]
        True

    Args:
        run: the run directory.

    Raises:
        UsageError: it holds no run, or its record is damaged.
    """
    folder = Path(run)
    if not (folder / "record.json").is_file():
        if not (folder / FILE).is_file():
            raise UsageError(f"{folder} holds no run: neither record.json nor {FILE} is there")
        return Result(folder, (), (), ("No trial has finished yet.",), finished=False)
    record = read_record(folder)
    trials = tuple(Trial.from_table(Table(dict(row), f"{folder}, trial {row['number']}")) for row in record.data["trials"])
    numbers = {trial.number: trial for trial in trials}
    both = zip(record.front, record.data["front"], strict=True)
    points = tuple(_front_point(point, numbers[point.trial], data, folder) for point, data in both)
    return Result(folder, trials, points, tuple(record.data["notes"]), finished=bool(record.data["finished"]))


def is_complete(record: Record) -> bool:
    """Has a search done all that its job asked for? One that only time limited could always go on."""
    job, rows = record.data["job"], record.data["trials"]
    searched = sum(1 for row in rows if not row.get("recovery") and not row.get("quantised"))
    ended = any(word in note for note in record.data["notes"] for word in ENDED)
    return bool(record.data["finished"]) and (ended or (job["trials"] > 0 and searched >= job["trials"]))


def _front_point(point: Point, trial: Trial, data: Mapping[str, Any], run: Path) -> FrontPoint:
    paired = data.get("paired_drop")
    return FrontPoint(
        trial, point.metric, point.drop, point.latency, point.speedup, run / "candidates" / str(point.trial),
        None if paired is None else Measurement.from_table(Table(dict(paired), f"point {point.trial}, paired_drop")),
        point.told_drop, point.told_high,
    )  # fmt: skip
