"""hwprune probe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hwprune.cli import arguments as args

EPILOG = """examples:
  hwprune probe demo:digits
  hwprune probe model.onnx --target cpu-openvino --out probe
  hwprune probe model.onnx --target cpu,ncnn,litert --out probe         their staircases together
  hwprune probe model.py:workload --target a100 --table a100-table     on the machine with the A100; then, anywhere:
  hwprune search model.py:workload --target a100 --table a100-table
  hwprune probe model.onnx --target l4 --estimate                      from the data sheet, without the device
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    args.add_workload(parser)
    parser.add_argument(
        "--target", metavar="T", default="cpu", help="names of `hwprune targets`, or paths of profiles, joined by commas"
    )
    parser.add_argument("--out", metavar="DIR", help="write probe.html, probe.csv and probe.json")
    parser.add_argument("--table", metavar="DIR", help="write the latency table (CSV and fingerprint) for use on another machine")
    parser.add_argument("--remote", metavar="URL", help="measure on another machine: ssh://[user@]host[:port][/path/to/hwprune]")
    parser.add_argument("--estimate", action="store_true", help="from the profile's data sheet; measures nothing")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    from hwprune.errors import UsageError
    from hwprune.probe import probe_files, together
    from hwprune.records import target as targets
    from hwprune.searching import resolved_job

    if options.estimate and (options.table or options.remote):
        raise UsageError("--estimate measures nothing: it goes neither with --table nor with --remote")
    for name in filter(None, (options.out, options.table)):
        args.require_writable(name)
    asked = [targets.load(name) for name in options.target.split(",")]
    if len(asked) > 1 and options.table:
        raise UsageError("--table holds the numbers of one target")
    for target in asked:
        resolved_job.check_runtime(target)
        if not options.estimate:
            resolved_job.require_target(target, options.remote or "")
    found, page = _probe_all(options, asked)
    width = args.width() if sys.stdout.isatty() else 10_000
    if options.json:
        told = [one.to_json() for one in found]
        print(json.dumps(told if len(told) > 1 else told[0]))
        return 0
    print(together.text(found, width) if len(found) > 1 else probe_files.text(found[0], width))
    if page is not None:
        print(f"\nPage: {page}" + ("" if len(found) > 1 else f"\nCSV:  {page.with_suffix('.csv')}"))
    if options.table:
        print(f"Table: {options.table} (for `hwprune search --table {options.table}`)")
    return 0


def _probe_all(options: argparse.Namespace, asked):  # type: ignore[no-untyped-def]  # types would import torch
    """Probe the model on each target, write what is to be written; the probes, and the page."""
    from hwprune.cli.progress_bar import make_progress
    from hwprune.common.files import write_atomic
    from hwprune.probe import estimating, probe_files, together
    from hwprune.pruning.pruner import Pruner
    from hwprune.workload import loading

    progress = make_progress(quiet=options.quiet or options.json)
    out = Path(options.out) if options.out else None
    last = ""

    def step(what: str, done: int, total: int) -> None:
        nonlocal last
        if sys.stderr.isatty() or what != last:  # a log needs no counting
            progress.stage(f"{what} ({done} of {total})" if total > 1 and sys.stderr.isatty() else what)
        last = what

    found = []
    try:
        progress.stage(f"loading {args.source(options)}")
        pruner = Pruner(loading.load(args.source(options), structure_only=True))
        for target in asked:
            if len(asked) > 1:
                progress.stage(f"on {target.name}")
            probed, table = (
                (estimating.estimate(pruner, target, step), None) if options.estimate else _measure(options, target, pruner, step)
            )
            found.append(probed)
            if out is not None:
                probe_files.write(probed, out / (target.name if len(asked) > 1 else ""))
            if table is not None and options.table:
                table.copy_to(Path(options.table))
        if out is not None and len(found) > 1:
            write_atomic(out / "probe.html", together.page(found))
    finally:
        progress.close()
    return found, out and out / "probe.html"


def _measure(options: argparse.Namespace, target, pruner, step):  # type: ignore[no-untyped-def]  # types would import torch
    from hwprune.common.files import cache_folder
    from hwprune.latency.bench import Bench
    from hwprune.latency.host import host
    from hwprune.latency.latency_table import LatencyTable
    from hwprune.probe import probing

    machine = host(options.remote)
    try:
        shapes = [tuple(x.shape) for x in pruner.workload.example_inputs]
        with Bench(target, host=machine, shapes=shapes) as bench:
            table = LatencyTable.stored(cache_folder() / "latency", bench.identity())
            if options.table and (Path(options.table) / "fingerprint.json").exists():
                LatencyTable.read(
                    Path(options.table), table.identity
                )  # another's table is not overwritten; say so before measuring
            wholes = probing.WHOLES_OF_A_TABLE if options.table else probing.WHOLES
            probed = probing.probe(pruner, target, bench, table, step, wholes)
    finally:
        machine.close()
    return probed, table
