"""hwprune report."""

from __future__ import annotations

import argparse
from pathlib import Path

from hwprune.cli import arguments as args


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run directory")


def run(options: argparse.Namespace) -> int:
    from hwprune.report.text import summary
    from hwprune.report.writing import write_report

    folder = Path(options.run_directory)
    record = write_report(folder)
    print(summary(record, args.width()))
    print(f"\nReport: {folder / 'report.html'}")
    return 0
