"""All files of a report."""

from __future__ import annotations

from pathlib import Path

from hwprune.record import Record, read_record
from hwprune.report.page import write_page
from hwprune.report.picture import write_picture
from hwprune.report.tables import write_tables


def write_report(run: Path) -> Record:
    """(Re)write report.html, front.csv, trials.csv and front.png from record.json; returns the record."""
    record = read_record(run)
    write_tables(record, run)
    write_picture(record, run / "front.png")
    write_page(record, run / "report.html")
    return record
