"""hwprune export."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hwprune.cli import arguments as args
from hwprune.errors import UsageError

if TYPE_CHECKING:
    from hwprune.records.record import Record

EPILOG = """examples:
  hwprune export runs/demo --max-drop 0.01 --out deploy
  hwprune export runs/demo --trial 8 --opset 17 --batch 1 --out deploy
  hwprune export runs/demo --min-speedup 2 --format openvino --precision fp16 --out deploy
  hwprune export runs/demo --trial 8 --format tensorrt --out deploy && sh deploy/build.sh
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", help="a run directory")
    parser.add_argument(
        "--trial", type=args.whole, metavar="N", help="this point of the front (default: what the report recommends)"
    )
    parser.add_argument("--max-drop", type=args.drop, metavar="X", help="the fastest point with at most this drop")
    parser.add_argument("--min-speedup", type=args.number, metavar="X", help="the most accurate point with at least this speedup")
    parser.add_argument(
        "--format", default="onnx", metavar="F",
        help="onnx, openvino, tensorrt, pt2, safetensors, huggingface or recipe (default: onnx)",
    )  # fmt: skip
    parser.add_argument("--opset", type=args.whole, metavar="N", help="opset of the ONNX file (default: as it was measured, 20)")
    parser.add_argument("--precision", default="fp32", metavar="P", help="fp16: weights in 16 bits (default: as it was measured)")
    parser.add_argument("--external-data", action="store_true", help="weights of the ONNX file in a file beside it")
    parser.add_argument("--batch", type=args.whole, metavar="N", help="fix the batch of the ONNX file (default: free)")
    parser.add_argument("--workload", metavar="W", help="for pt2 and huggingface, when the run can't load its workload by itself")
    parser.add_argument("--out", required=True, metavar="DIR", help="an empty or new folder")


def run(options: argparse.Namespace) -> int:
    from hwprune.common import formatting
    from hwprune.deploy import exporting
    from hwprune.deploy.point import Options
    from hwprune.records.record import read_record
    from hwprune.report.text import is_share
    from hwprune.workload import loading

    folder = Path(options.run_directory)
    form = Options(options.opset, options.precision, options.external_data, options.batch)
    args.require_writable(options.out)
    exporting.check_format(options.format, form)
    if options.trial is not None and (options.max_drop is not None or options.min_speedup is not None):
        raise UsageError("give --trial, or --max-drop / --min-speedup, not both")
    record = read_record(folder)
    number = options.trial
    if number is None:
        number = _chosen(record, options)
    workload = loading.load(options.workload) if options.workload else None
    out = exporting.export_run(folder, number, options.format, Path(options.out), workload, form)
    point = next(point for point in record.front if point.trial == number)
    told = formatting.drop(point.drop, share=is_share(record))
    print(f"trial {number}: {formatting.speedup(point.speedup.value)} at a drop of {told} -> {out}")
    if options.format == "recipe" and exporting.training_of(record, number) is not None:
        message = (
            "this point was trained after pruning; its recipe alone prunes, and does not give these weights (--format onnx does)"
        )
        print(f"hwprune: warning: {message}", file=sys.stderr)
    for path in sorted(out.iterdir()):
        print(f"  {path.name}  {formatting.size(path.stat().st_size)}")
    if (out / "expected.npz").exists():
        print(f"Next, on the device: hwprune verify {shlex.quote(str(out))}")
    return 0


def _chosen(record: Record, options: argparse.Namespace) -> int:
    """The trial that the limits choose; without limits the one that the summary and the report recommend."""
    from hwprune.report.text import recommended
    from hwprune.searching.result import choose

    if options.max_drop is None and options.min_speedup is None and record.front:
        return record.front[recommended(record)].trial
    return choose(record.front, options.max_drop, options.min_speedup).trial
