"""The files of a latency table: CSV rows that are checked, and a lock."""

from __future__ import annotations

import csv
import fcntl
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Keep everybody else out, writers and readers, until the block ends."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Keep writers out until the block ends; a lock file that is not there or can't be opened keeps nobody out."""
    try:
        handle = path.open("rb")  # for reading, which a read-only folder allows too
    except OSError:
        yield
        return
    with handle:
        with suppress(OSError):  # some network file systems have no locks; what lies there must still be readable
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def read_rows(path: Path, columns: Sequence[str], faults: list[str]) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf8") as handle:
            reader = csv.DictReader(handle)
            lacking = [name for name in columns if name not in (reader.fieldnames or ())]
            if lacking:
                faults.append(f"{path.name} lacks the column(s) {', '.join(lacking)}")
                return
            for number, row in enumerate(reader, 2):
                if any(row[name] is None for name in columns):
                    faults.append(f"{path.name}, line {number}: too few cells")
                    continue
                yield {**row, "": f"{path.name}, line {number}"}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        faults.append(f"{path.name} can't be read: {error}")


def read_number(row: Mapping[str, str], name: str, faults: list[str], *, positive: bool = False) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        faults.append(f"{row['']}: {name} must be a number {'> 0' if positive else '>= 0'}, got {row[name]!r}")
        return 1.0
    return value


def read_counts(text: str, faults: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for part in text.split():
        signature, _, count = part.partition("*")
        if not count.isdigit():
            faults.append(f"models.csv: {part!r} is not SIGNATURE*COUNT")
            continue
        counts[signature] = int(count)
    return counts
