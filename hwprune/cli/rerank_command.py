"""hwprune rerank."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hwprune.cli import arguments as args
from hwprune.errors import RunError, UsageError

EPILOG = """examples:
  hwprune rerank runs/mine --target cpu-openvino
  hwprune rerank runs/mine --target cpu --batch 32 --out reranked
  hwprune rerank runs/mine --target a100 --remote ssh://user@host
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run directory")
    parser.add_argument("--target", metavar="T", help="where to measure (default: the run's own)")
    parser.add_argument("--batch", type=args.whole, metavar="N", help="examples in a timed batch (default: as in the run)")
    parser.add_argument("--remote", metavar="URL", default="", help="measure on another machine: ssh://[user@]host[:port]")
    parser.add_argument("--workload", metavar="W", help="where the metric comes from, if it is a function of yours")
    parser.add_argument("--out", metavar="DIR", help="folder of rerank.csv and rerank.json (default: RUN/rerank-TARGET)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    from hwprune.cli.progress_bar import make_progress
    from hwprune.common import formatting
    from hwprune.deploy import reranking
    from hwprune.deploy.target_of_run import profile
    from hwprune.errors import CandidateFailure
    from hwprune.records import target as targets
    from hwprune.records.record import read_record
    from hwprune.report.text import is_share, table
    from hwprune.searching import resolved_job
    from hwprune.workload import loading

    folder = Path(options.run_directory)
    record = read_record(folder)
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch must be at least 1, got {options.batch}")
    target = targets.load(options.target) if options.target else profile(record.data)
    suffix = f"-batch{options.batch}" if options.batch else ""
    out = args.require_writable(options.out or folder / f"rerank-{target.name}{suffix}")
    resolved_job.check_runtime(target)
    resolved_job.require_target(target, options.remote)
    metric = loading.load(options.workload).scoring if options.workload else None
    progress = make_progress(quiet=options.quiet or options.json)
    progress.stage(f"scoring and measuring {len(record.front)} points on {target.name}")
    try:
        points, facts = reranking.rerank(folder, target, options.batch, options.remote, metric, progress.confirmed)
    except CandidateFailure as failure:
        raise RunError(failure.reason) from failure
    finally:
        progress.close()
    reranking.write(points, facts, out)
    if options.json:
        print(json.dumps({**facts, "points": [point.row() for point in points]}))
    else:
        header = ["", f"on {target.name}", f"on {record.data['target']['name']}", "drop", "before", ""]
        dense = formatting.seconds(facts["dense_latency"]["value"])
        print(f"dense: {dense} for a batch of {facts['batch']} on {target.description}\n")
        print(table(header, reranking.text_rows(points, share=is_share(record)), args.width()))
        print(f"\nFiles: {out / 'rerank.csv'}, {out / 'rerank.json'}")
    return 0 if any(point.speedup is not None for point in points) else 1
