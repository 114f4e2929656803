"""hwprune report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hwprune.cli import arguments as args
from hwprune.cli import search_language

EPILOG = """examples:
  hwprune report runs/demo
  hwprune report runs/demo --format md
  hwprune report archive/run --out page      of a run that is read-only
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run directory")
    parser.add_argument(
        "--format", default="all", metavar="F",
        help="all (report.html, front.csv, trials.csv, front.png), html, csv, png, or md (report.md, for a pull request)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="write into this folder instead of the run directory")


def run(options: argparse.Namespace) -> int:
    from hwprune.report.text import summary
    from hwprune.report.writing import write_formats

    out = Path(options.out) if options.out else None
    if search_language.is_run(Path(options.run_directory)):
        return search_language.report(Path(options.run_directory), out)
    record, files = write_formats(Path(options.run_directory), options.format, out)
    print(files[0].read_text(encoding="utf-8") if options.format == "md" else summary(record, args.width()))
    # Of a report that is printed itself this is no part: it may be on its way into a pull request.
    where = sys.stderr if options.format == "md" else sys.stdout
    print(f"\nWritten: {', '.join(str(path) for path in files)}", file=where)
    return 0
