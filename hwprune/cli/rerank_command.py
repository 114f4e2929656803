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
  hwprune rerank runs/mine --target all                     every runtime that is installed, on one page
  hwprune rerank runs/mine --target a100 --remote ssh://user@host
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run directory")
    parser.add_argument("--target", metavar="T", help="where to measure: names joined by commas, or all (default: the run's own)")
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
    from hwprune.errors import CandidateFailure
    from hwprune.records.record import read_record
    from hwprune.report.text import is_share, table
    from hwprune.searching import resolved_job
    from hwprune.workload import loading

    folder = Path(options.run_directory)
    record = read_record(folder)
    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch must be at least 1, got {options.batch}")
    asked = _asked(options.target, record)
    suffix = f"-batch{options.batch}" if options.batch else ""
    several = len(asked) > 1
    usual = folder / (f"rerank{suffix}" if several else f"rerank-{asked[0].name}{suffix}")
    root = Path(args.require_writable(options.out or usual))
    for target in asked:
        resolved_job.check_runtime(target)
        resolved_job.require_target(target, options.remote)
    metric = loading.load(options.workload).scoring if options.workload else None
    progress = make_progress(quiet=options.quiet or options.json)
    results, refused = {}, {}
    try:
        for target in asked:
            progress.stage(f"scoring and measuring {len(record.front)} points on {target.name}")
            try:
                results[target.name] = reranking.rerank(folder, target, options.batch, options.remote, metric, progress.confirmed)
            except CandidateFailure as failure:
                refused[target.name] = failure.reason
                continue
            points, facts = results[target.name]
            reranking.write(points, facts, root / target.name if several else root)
    finally:
        progress.close()
    if not results:
        raise RunError("; ".join(f"{name}: {reason}" if several else reason for name, reason in refused.items()))
    if options.json:
        told = [{**facts, "points": [point.row() for point in points]} for points, facts in results.values()]
        print(json.dumps(told if several else told[0]))
    elif several:
        _show_together(results, folder, root)
        print("\n".join(f"{name} does not run the dense model: {reason}" for name, reason in refused.items()))
    else:
        points, facts = results[asked[0].name]
        header = ["", f"on {asked[0].name}", f"on {record.target_label}", "drop", "before", ""]
        dense_s = formatting.seconds(facts["dense_latency"]["value"])
        print(f"dense: {dense_s} for a batch of {facts['batch']} on {asked[0].description}\n")
        print(table(header, reranking.text_rows(points, share=is_share(record)), args.width()))
        print(f"\nFiles: {root / 'rerank.csv'}, {root / 'rerank.json'}")
    return 0 if any(point.speedup is not None for points, _ in results.values() for point in points) else 1


def _show_together(results, folder: Path, root: Path) -> None:  # type: ignore[no-untyped-def]  # types would import NumPy
    """All targets in one table, on the terminal and as a page."""
    from hwprune.common import formatting, html_table
    from hwprune.common.files import write_atomic
    from hwprune.deploy import reranking
    from hwprune.report.text import table

    header = ["speedup", *results]
    dense = ["dense", *(formatting.seconds(facts["dense_latency"]["value"]) for _, facts in results.values())]
    rows = [dense, *reranking.rows_together({name: points for name, (points, _) in results.items()})]
    print(table(header, rows, args.width()))
    title = f"{folder.name} on {', '.join(results)}"
    write_atomic(root / "rerank.html", html_table.document(title, html_table.table(title, header, rows)))
    print(f"\nPage: {root / 'rerank.html'}; rerank.csv and rerank.json of each target are beside it")


def _asked(text: str | None, record):  # type: ignore[no-untyped-def]  # types would import what the command does not need to start
    """The targets: those that are named; ``all`` that can be measured here and run the run's files; none: the run's own."""
    from hwprune import runtimes
    from hwprune.deploy.target_of_run import profile
    from hwprune.latency.availability import missing
    from hwprune.records import target as targets

    if text is None:
        return [profile(record.data)]
    if text != "all":
        return [targets.load(name) for name in text.split(",")]
    known = [targets.load(name) for name in targets.names()]
    return [
        target
        for target in known
        if runtimes.get(target.runtime).file == record.model_file and target.precision == "fp32" and not missing(target)
    ]
