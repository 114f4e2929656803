"""hwprune cascade."""

from __future__ import annotations

import argparse
from pathlib import Path

from hwprune.cli import arguments as args
from hwprune.errors import UsageError

EPILOG = """examples:
  hwprune cascade runs/mine                                   two models of the front, at most 1 point below dense
  hwprune cascade runs/mine --max-drop 0.005 --max-latency worst=2ms
  hwprune cascade runs/mine --min-speedup 4                   the most accurate one that is 4 times as fast in the mean
  hwprune cascade runs/mine --pair 12,dense --out deploy
  hwprune cascade runs/mine --exits                           one model with an early exit, whose head is trained here
"""
USUAL_DROP = 0.01


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run directory with a measured front")
    parser.add_argument("--max-drop", type=args.drop, metavar="D", help=f"largest drop of the metric (default: {USUAL_DROP})")
    parser.add_argument("--min-speedup", type=args.number, metavar="S", help="least speedup of the mean over inputs")
    parser.add_argument("--max-latency", type=worst, metavar="worst=L", help="largest latency of an input that goes through both")
    parser.add_argument("--pair", metavar="A,B", help="two trials of the front, the faster one first; dense is the dense model")
    parser.add_argument("--exits", action="store_true", help="divide one model, and train an early exit, instead of two models")
    parser.add_argument("--workload", metavar="W", help="where a metric of yours, and data for --exits, come from")
    parser.add_argument("--out", metavar="DIR", help="folder for the files (default: RUN/cascade)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    args.add_output(parser)


def worst(text: str) -> float:
    """worst=2ms -> seconds."""
    name, _, value = text.partition("=")
    if name != "worst" or not value:
        raise argparse.ArgumentTypeError(f"{text!r}: write worst=2ms")
    return args.latency(value)


def run(options: argparse.Namespace) -> int:
    from hwprune.cli.progress_bar import make_progress
    from hwprune.common import formatting
    from hwprune.deploy import cascade_writing, cascading
    from hwprune.deploy.cascade_choice import Wish
    from hwprune.records.record import read_record
    from hwprune.report import cascade_page, writing
    from hwprune.report.text import table, wrapped
    from hwprune.workload import loading

    folder = Path(options.run_directory)
    if options.min_speedup is not None and options.max_drop is not None:
        raise UsageError("--max-drop and --min-speedup: give one, the other is what is optimised")
    limit = USUAL_DROP if options.max_drop is None and options.min_speedup is None else options.max_drop
    wish = Wish(limit, None, options.max_latency)
    pair = tuple(options.pair.split(",")) if options.pair else None
    if pair is not None and len(pair) != 2:
        raise UsageError(f"--pair takes two models, such as 12,dense; got {options.pair!r}")
    out = Path(args.require_writable(options.out or folder / "cascade"))
    if options.exits and pair:
        raise UsageError("--pair names two models, --exits divides one: give one of them")
    source = options.workload or (read_record(folder).data["workload"]["source"] if options.exits else "")
    if options.exits and not source:
        raise UsageError("the run was made from a live Python object: name its workload with --workload")
    workload = loading.load(source) if source else None
    metric = workload.scoring if workload is not None and options.workload else None
    progress = make_progress(quiet=options.quiet or options.json)
    try:
        result = cascading.cascade(
            folder, out, wish, pair, metric, options.min_speedup, workload if options.exits else None, progress.stage
        )
    finally:
        progress.close()
    cascade_page.write(result, out)
    if out.resolve() == (folder / "cascade").resolve():
        writing.write_report(folder)  # which shows it
    if options.json:
        print((out / "cascade.json").read_text())
        return 0
    plan, exits = result.plan, result.exits
    first, second = (cascade_page.named(key) for key in (plan.first, plan.second))
    print(f"{first} first; {second} where it is less than {formatting.percent(plan.threshold)} sure")
    low, high = formatting.percent(exits.ci_low), formatting.percent(exits.ci_high)
    print(f"{formatting.percent(exits.value)} [{low}, {high}] of the {result.split} examples end at the first model\n")
    print(table(cascade_page.HEADER, cascade_page.rows(result), args.width()))
    print(f"\n{wrapped(cascade_page.verdict(result), args.width())}")
    names = ["cascade.json", "first.onnx", "second.onnx", cascade_writing.RUNNER, "cascade.png"]
    names += ["model.onnx"] if result.without_one_file is None else []
    print(f"\nFiles: {out} ({', '.join(names)})")
    return 0
