"""All files of a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hwprune.errors import UnknownNameError
from hwprune.files import write_atomic
from hwprune.record import Record, front_file, read_record
from hwprune.report.markdown import markdown
from hwprune.report.page import write_page
from hwprune.report.picture import write_picture
from hwprune.report.tables import write_tables

FORMATS: Mapping[str, tuple[str, ...]] = {
    "all": ("csv", "png", "html"), "csv": ("csv",), "png": ("png",), "html": ("html",), "md": ("md",),
}  # fmt: skip


def write_formats(run: Path, form: str) -> tuple[Record, list[Path]]:
    """(Re)write what a format stands for; the record and the files.

    Raises:
        UnknownNameError: no such format.
        UsageError: there is no record.
    """
    if form not in FORMATS:
        raise UnknownNameError("report format", form, list(FORMATS))
    record = read_record(run)
    written: list[Path] = []
    for kind in FORMATS[form]:
        if kind == "csv":
            write_tables(record, run)
            written += [run / front_file(record), run / "trials.csv"]
        elif kind == "png":
            write_picture(record, run / "front.png")
            written.append(run / "front.png")
        elif kind == "md":
            write_atomic(run / "report.md", markdown(record))
            written.append(run / "report.md")
        else:
            write_page(record, run / "report.html")
            written.append(run / "report.html")
    return record, written


def write_report(run: Path) -> Record:
    """(Re)write report.html, front.csv, trials.csv and front.png from record.json; returns the record."""
    return write_formats(run, "all")[0]
