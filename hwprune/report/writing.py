"""All files of a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hwprune.common.files import write_atomic
from hwprune.errors import UnknownNameError, UsageError
from hwprune.records.record import Record, read_record
from hwprune.report.markdown import markdown
from hwprune.report.page import write_page
from hwprune.report.picture import write_picture
from hwprune.report.tables import write_tables

FORMATS: Mapping[str, tuple[str, ...]] = {
    "all": ("csv", "png", "html"), "csv": ("csv",), "png": ("png",), "html": ("html",), "md": ("md",),
}  # fmt: skip


def write_formats(run: Path, form: str, out: Path | None = None) -> tuple[Record, list[Path]]:
    """(Re)write what a format stands for, in the run directory or another folder; the record and the files.

    Raises:
        UnknownNameError: no such format.
        UsageError: there is no record, or the folder can't be written to.
    """
    if form not in FORMATS:
        raise UnknownNameError("report format", form, list(FORMATS))
    record = read_record(run)
    folder = out or run
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in FORMATS[form]:
            written += _write(record, kind, folder, run)
    except OSError as error:
        other = "" if out else "; --out writes elsewhere"
        raise UsageError(f"can't write into {folder}: {(error.strerror or str(error)).lower()}{other}") from error
    return record, written


def _write(record: Record, kind: str, folder: Path, run: Path) -> list[Path]:
    if kind == "csv":
        write_tables(record, folder)
        return [folder / record.front_file, folder / "trials.csv"]
    if kind == "png":
        write_picture(record, folder / "front.png")
        return [folder / "front.png"]
    if kind == "md":
        write_atomic(folder / "report.md", markdown(record))
        return [folder / "report.md"]
    write_page(record, folder / "report.html", run)
    return [folder / "report.html"]


def write_report(run: Path) -> Record:
    """(Re)write report.html, front.csv, trials.csv and front.png from record.json; returns the record."""
    return write_formats(run, "all")[0]
