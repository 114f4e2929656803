"""hwprune search."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hwprune.cli import arguments as args
from hwprune.cli import search_language
from hwprune.errors import RunError, UsageError

if TYPE_CHECKING:
    from hwprune.searching.job import Job

DEFAULT = "demo:digits"
"""The workload where neither the command line nor a job's file names one."""

EPILOG = """examples:
  hwprune search demo:digits --trials 40 --seed 0 --out runs/demo
  hwprune search model.py:workload width=64 --max-drop 0.01 --time 30m
  hwprune search model.onnx --data data.npz --max-latency 2ms --max-size 20MB
  hwprune search model.py:workload --recover distill:2 --quantize int8,int4
  hwprune search --job job.toml --trials 100
  hwprune search --resume --out runs/demo --trials 80
  hwprune search hf:FOLDER --text valid.txt,test.txt --tokens 128+64 --max-latency prefill=200ms,decode=30ms
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    args.add_workload(parser, DEFAULT)
    parser.add_argument("--job", metavar="FILE", help="a job.toml (see `hwprune init`); command-line options override it")
    parser.add_argument(
        "--target",
        metavar="T",
        help="a name of `hwprune targets`, or the path of a profile (default: cpu); NAME,NAME: "
        "the worst of several counts; NAME=2,NAME=1: their weighted mean",
    )
    parser.add_argument("--space", metavar="S", help="a name of `hwprune spaces`, or the path of one (default: default)")
    parser.add_argument("--trials", type=args.whole, metavar="N", help="different recipes to evaluate (default: 60)")
    parser.add_argument(
        "--time",
        type=args.seconds,
        metavar="30m",
        help="time of the whole search, with preparation and the final measurement; training comes on top",
    )
    parser.add_argument("--sampler", metavar="NAME", help="a name of `hwprune samplers` (default: knapsack)")
    parser.add_argument("--seed", type=args.whole, metavar="N", help="(default: 0)")
    parser.add_argument("--max-drop", type=args.drop, metavar="0.01", help="largest drop, in the metric's own unit; 1%% is 0.01")
    parser.add_argument("--min-speedup", type=args.number, metavar="1.5", help="smallest speedup")
    parser.add_argument(
        "--max-latency", type=args.latencies, metavar="2ms", help="longest latency of one batch: 2ms, 150us, 0.01s; "
        "of a language model prefill=200ms,decode=30ms"
    )  # fmt: skip
    parser.add_argument("--max-size", type=args.size, metavar="20MB", help="largest file of the model")
    parser.add_argument(
        "--recover",
        metavar="MODE",
        help="none, compensations such as obs+sequential, or training of the finalists: finetune:EPOCHS, distill:EPOCHS, "
        "gradual:EPOCHS (default: the compensations that the model has use for)",
    )
    parser.add_argument(
        "--quantize",
        metavar="P,...",
        help="try the dense model and the front in these precisions too, on the same axes: int8, int4, fp16 (default: none)",
    )
    parser.add_argument(
        "--remote", metavar="URL", help="measure on another machine that has hwprune: ssh://[user@]host[:port][/path/to/hwprune]"
    )
    parser.add_argument(
        "--table", metavar="DIR", help="predict latency from a table that `hwprune probe --table` wrote on the device"
    )
    parser.add_argument(
        "--estimate",
        action=argparse.BooleanOptionalAction,
        help="estimate latency from the profile's data sheet; measures nothing",
    )
    parser.add_argument("--database", metavar="DIR", help="option database, shared by runs (default: in the cache folder)")
    parser.add_argument(
        "--all-patterns", action=argparse.BooleanOptionalAction, help="search also what the target can't execute faster"
    )
    parser.add_argument(
        "--trial-timeout", type=args.seconds, metavar="120s", help="limit of one step of a candidate (default: 120s)"
    )
    parser.add_argument(
        "--memory-limit",
        type=args.size,
        metavar="4GB",
        help="memory that running a candidate may take (default: 3/4 of the machine's)",
    )
    parser.add_argument(
        "--tokens",
        metavar="P+N",
        help="of a language model: P tokens in, N out, whose time counts (default: 128+64)",
    )
    parser.add_argument("--max-cache", type=args.size, metavar="30kB", help="of a language model: largest cache of one token")
    parser.add_argument("--choices", metavar="FILE", help="of a language model: questions in a .jsonl, answered by each point")
    parser.add_argument("--windows", metavar="N", type=args.whole, help="of a language model: calibrating windows (default: 64)")
    parser.add_argument("--points", metavar="N", type=args.whole, help="of a language model: points to write (default: 4)")
    parser.add_argument("--out", metavar="DIR", help="run directory (default: runs/NAME-TIME)")
    parser.add_argument("--storage", metavar="URL", help="Optuna storage (default: SQLite in the run directory)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell every stage, and whole reasons")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    if options.resume and not options.out:
        raise UsageError("--resume needs --out, the run directory to go on with")
    if search_language.wanted(options):
        return search_language.run(options)
    alone = ("tokens", "windows", "points", "max_cache", "choices")
    if any(getattr(options, name) for name in alone) or isinstance(options.max_latency, dict):
        names = ", ".join("--" + name.replace("_", "-") for name in alone)
        raise UsageError(f"{names} and limits of phases are for hf:FOLDER of a language model with --text")
    if options.resume and options.job:
        raise UsageError("a resumed run has a job of its own: leave --job out")
    job = _changed(_first(options), options)
    from hwprune.cli.progress_bar import make_progress
    from hwprune.records.record import read_record
    from hwprune.report.text import advice, emptiness, recommended, summary
    from hwprune.searching import search
    from hwprune.workload import loading

    resolved = search.check_job(job)
    if not job.workload:
        raise UsageError(
            f"the run in {options.out} was made from a live Python object: resume it with hwprune.search(..., resume=True)"
        )
    progress = make_progress(quiet=options.quiet or options.json, verbose=options.verbose)
    path: Path | None = None

    def began(run: Path) -> None:
        nonlocal path
        path = run

    out = Path(options.out) if options.out else None
    try:
        result = search.run_job(
            resolved, lambda: loading.load(job.workload), out, resume=options.resume, progress=progress, began=began
        )
    except KeyboardInterrupt:
        progress.close()
        if path is not None and (path / "job.toml").exists():
            print(
                f"\nhwprune: interrupted; go on with:\n  hwprune search --resume --out {shlex.quote(str(path))}", file=sys.stderr
            )
            return 130
        raise
    finally:
        progress.close()
    record = read_record(result.run)
    if options.json:
        print(
            json.dumps(
                {
                    "run": str(result.run),
                    "front": record.data["front"],
                    "baseline": record.data["baseline"],
                    "notes": record.data["notes"],
                }
            )
        )
    elif not options.quiet:
        print(summary(record, args.width()))
        print(f"\nReport: {result.run / 'report.html'}\nFiles:  {result.run / 'candidates'}")
        if record.front:
            trial = record.front[recommended(record)].trial
            print(f"\nNext:\n  hwprune export {shlex.quote(str(result.run))} --trial {trial} --out deploy")
    if not record.front:
        raise RunError(f"the front is empty: {emptiness(record)}. {advice(record)} The run is kept: {result.run / 'report.html'}")
    return 0


def _first(options: argparse.Namespace) -> Job:
    """What the command line changes: the run's own job, that of a file, or a new one."""
    from hwprune.searching.job import Job
    from hwprune.workload import source_words

    if options.resume:
        return Job.read(_held(options.out))
    if not options.job:
        return Job(args.source(options, DEFAULT))
    job = Job.read_file(Path(options.job))
    if options.workload is not None:
        return replace(job, workload=args.source(options))
    workload = _beside(Path(options.job), job.workload or DEFAULT)
    words = [*source_words.split(workload), *([f"data={options.data}"] if options.data else [])]
    return replace(job, workload=source_words.join(words))


def _beside(job: Path, workload: str) -> str:
    """The workload of a job's file, with paths that lie beside the file as seen from here."""
    from hwprune.workload import source_words

    def seen(path: str) -> str:
        return str(job.parent / path) if not Path(path).is_absolute() and (job.parent / path).is_file() else path

    words = source_words.split(workload)
    for place, word in enumerate(words):
        key, equals, value = word.partition("=") if place else ("", "", word)
        path, colon, rest = value.rpartition(":") if value.rpartition(":")[0].endswith(".py") else (value, "", "")
        words[place] = key + equals + seen(path) + colon + rest
    return source_words.join(words)


def _asks_for_another_workload(job: Job, options: argparse.Namespace) -> bool:
    """Is a workload given, or data, that a resumed run does not have? Saying the same again is fine."""
    from hwprune.workload import source_words

    if options.workload is not None:
        return args.source(options) != job.workload
    return bool(options.data) and f"data={options.data}" not in source_words.split(job.workload)[1:]


def _held(out: str) -> Path:
    run_directory = Path(out)
    if not (run_directory / "job.toml").is_file():
        raise UsageError(f"{run_directory} holds no run to resume (no job.toml)")
    return run_directory


def _changed(job: Job, options: argparse.Namespace) -> Job:
    """The job with what was given on the command line; a resumed one keeps the rest."""
    given = {
        "target": options.target,
        "space": options.space,
        "trials": options.trials,
        "time_s": options.time,
        "sampler": options.sampler,
        "seed": options.seed,
        "max_drop": options.max_drop,
        "min_speedup": options.min_speedup,
        "max_latency_s": options.max_latency,
        "max_size": options.max_size,
        "recover": options.recover,
        "database": options.database,
        "remote": options.remote,
        "table": options.table,
        "estimate": options.estimate,
        "all_patterns": options.all_patterns,
        "trial_timeout_s": options.trial_timeout,
        "memory_limit": options.memory_limit,
        "storage": options.storage,
        "quantize": options.quantize,
    }
    values = {key: value for key, value in given.items() if value is not None}
    if options.resume:
        fixed: list[str] = [
            key
            for key in ("target", "space", "storage", "all_patterns", "table", "estimate")
            if key in values and values[key] != getattr(job, key)
        ]
        if _asks_for_another_workload(job, options):
            fixed.append("workload")
        if fixed:
            raise UsageError(f"a resumed run keeps its {', '.join(fixed)}; start a new one with another --out")
    elif "time_s" in values and "trials" not in values and not options.job:
        values["trials"] = 0
    return replace(job, **values)
