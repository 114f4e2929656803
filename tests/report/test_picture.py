"""front.png."""

from __future__ import annotations

from hwprune.report.writing import write_report


def test_picture_is_a_png(run):
    write_report(run)
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")
