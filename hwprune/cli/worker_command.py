"""hwprune worker."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = """A worker needs the run directory and the study's storage. On this machine the run directory is enough:
  hwprune worker runs/demo
On other machines the run directory must be shared, and the study be in PostgreSQL or in a journal file:
  hwprune search model.py:workload --out /shared/run --storage postgresql://user@host/hwprune
  hwprune worker /shared/run
Only workers on the study's own device time candidates; the others prune and score them.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="run directory of a search that is under way")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> int:
    from hwprune.cli.progress_bar import make_progress
    from hwprune.searching import search

    progress = make_progress(quiet=options.quiet)
    try:
        done = search.join(Path(options.folder), progress)
    except KeyboardInterrupt:
        progress.close()
        print("\nhwprune: interrupted; what this worker was at is proposed again", file=sys.stderr)
        return 130
    finally:
        progress.close()
    if not options.quiet:
        print(f"This worker evaluated {done} trials of {options.folder}.")
    return 0
