"""hwprune check."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hwprune.cli import arguments as args
from hwprune.errors import UsageError

EPILOG = """examples:
  hwprune check model.onnx --target rtx-4090
  hwprune check runs/mine --target a100,l4 --out engines
  hwprune check model.onnx --target litert,ncnn,mnn --shape 1x3x224x224
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="RUN|MODEL.onnx", help="a run directory, or an ONNX file")
    parser.add_argument(
        "--target",
        metavar="T,...",
        required=True,
        help="names of `hwprune targets`: GPUs (rtx-4090), or runtimes (litert, ncnn, browser)",
    )
    parser.add_argument(
        "--shape", metavar="SIZES",
        help="sizes of the inputs of a model.onnx, e.g. 1x3x224x224; of several joined by commas (default: free sizes are 1)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="keep the engines here (default: none is kept)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    from hwprune.cli.progress_bar import make_progress
    from hwprune.common import formatting
    from hwprune.deploy import build_check
    from hwprune.records import target as targets
    from hwprune.report.text import table
    from hwprune.runtimes import tensorrt_rtx

    files = build_check.files_of(Path(options.what), _shapes(options.shape))
    if not files:
        raise UsageError(f"{options.what} holds no ONNX files any more")
    asked = [targets.load(name) for name in options.target.split(",")]
    for target in asked:
        if target.device == "cuda":
            build_check.require_builder(target)
    out = args.require_writable(options.out) if options.out else None
    progress = make_progress(quiet=options.quiet or options.json)
    try:
        found = {
            target.name: (build_check.check_builds if target.device == "cuda" else build_check.check_runs)(
                files, target, out, progress.stage
            )
            for target in asked
        }
    finally:
        progress.close()
    good = all(one.builds for of_target in found.values() for one in of_target.values())
    if options.json:
        builds = {name: {file: one.to_json() for file, one in of_target.items()} for name, of_target in found.items()}
        print(json.dumps({"builder": tensorrt_rtx.version(), "targets": builds}))
        return 0 if good else 1
    rows, told = [], []
    for target in asked:
        for name, one in found[target.name].items():
            size = formatting.size(one.engine_bytes) if one.engine_bytes else ""
            words = ("does not build", "builds") if target.device == "cuda" else ("refused", "runs and agrees")
            rows.append([name, target.name, words[one.builds], size, formatting.duration(one.seconds)])
            if not one.builds:
                why = [f"{node['operator']} {node['name']}: {node['reason']}" for node in one.refused] or [one.reason]
                told += [f"{name} on {target.name}: {text}" for text in why]
    print(table(["model", "target", "", "file", "took here"], rows, args.width()))
    print("\n".join(["", *told] if told else []))
    if any(target.device == "cuda" for target in asked):
        print(f"Builder: {tensorrt_rtx.version()}, ahead of time. It says what builds, not how fast it is.")
    if any(target.device != "cuda" for target in asked):
        print("Outputs were compared with ONNX Runtime's on made-up inputs; nothing was timed.")
    return 0 if good else 1


def _shapes(text: str | None) -> list[list[int]]:
    if text is None:
        return []
    try:
        return [[int(size) for size in one.split("x")] for one in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--shape takes sizes such as 1x3x224x224, got {text!r}") from error
