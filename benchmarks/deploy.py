"""Pruning beside plain quantisation, and both together: accuracy, measured speedup and file size, on ONNX Runtime and OpenVINO.

    python benchmarks/deploy.py [--workloads resnet20,wide_cnn,minilm] [--trials 20] [--drops 0.01,0.03] [--targets cpu,cpu-openvino]
                                [--keep DIR] [--quantize int8,int4]

One search on ONNX Runtime, nothing trained (a finished one in ``--keep`` is taken again); the fastest points of its front within
each of the drops are then written in 32 bits, INT8 and 4 bits, beside the dense model in each. Every file is scored on the whole test split and
measured against the dense one in 32 bits in fresh processes, on each target. Intervals: 95 % of the metric, the extremes over the
processes for the speedup.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import workloads
from common import heading

import hwprune
from hwprune.common import formatting
from hwprune.deploy import onnx_quantisers, quantise
from hwprune.errors import CandidateFailure
from hwprune.latency import fingerprint, fresh
from hwprune.latency.bench import Bench
from hwprune.latency.samples import example_shapes
from hwprune.records import target as targets
from hwprune.workload import sample_files, scoring

PRECISIONS = ("fp32", "int8", "int4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="resnet20,wide_cnn,minilm")
    parser.add_argument("--targets", default="cpu,cpu-openvino")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--drops", default="0.01,0.03")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantize", default="", help="for the search itself, as on the command line")
    parser.add_argument("--keep", type=Path, help="keep the runs in this folder")
    options = parser.parse_args()
    heading("pruning beside quantisation")
    for name in options.workloads.split(","):
        with tempfile.TemporaryDirectory() as folder:
            table(name, options, Path(folder))


def table(name: str, options: argparse.Namespace, folder: Path) -> None:
    workload = getattr(workloads, name)()
    run = options.keep / name if options.keep else folder / "run"
    # With --quantize the picture of the front is worth a look, but quantised forms push most points in 32 bits off it.
    result = hwprune.search(
        workload,
        trials=options.trials,
        out=run,
        seed=options.seed,
        quantize=options.quantize,
        resume=(run / "record.json").exists(),
    )
    sources = {"dense": run / "baseline" / "model.onnx"}
    for limit in map(float, options.drops.split(",")):
        plain = [p for p in result.points if p.drop <= limit and not p.trial.quantised]
        if not plain:
            print(f"{name}: no point of the front has a drop of at most {limit:g}")
            continue
        point = plain[-1]
        sources[f"pruned (drop <= {limit:g}, trial {point.trial.number})"] = point.folder / "model.onnx"
    calibration = [[x.numpy() for x in inputs] for inputs, _ in workload.batches("calibration")]
    integers = onnx_quantisers.Integers(saturating=fingerprint.saturates())
    # Where the CPU's kernels overflow, plain 8 bits stand beside what hwprune makes of them.
    ways = {name: (name, integers) for name in PRECISIONS} | (
        {"int8, all 8 bits": ("int8", onnx_quantisers.Integers())} if integers.saturating else {}
    )
    files: dict[str, Path] = {}
    for label, source in sources.items():
        for way, (precision, wanted) in ways.items():
            key = f"{label}, {way}"
            path = folder / f"{len(files)}.onnx"
            if precision == "fp32":
                files[key] = source
                continue
            try:
                quantise.quantise(onnx.load(str(source)), precision, lambda: calibration, path, wanted)
                files[key] = path
            except CandidateFailure as failure:
                print(f"{key}: {failure.reason}")
    samples, example = folder / "test.npz", run / "baseline" / "example.npz"
    labels = sample_files.write_samples(workload, "test", samples)
    for target in options.targets.split(","):
        show(name, target, files, samples, example, labels, workload.scoring, folder)


def show(name, target, files, samples, example, labels, metric, folder) -> None:  # type: ignore[no-untyped-def]
    chosen = targets.load(target)
    scores, out = {}, folder / "out.npz"
    shapes = example_shapes(example)
    with Bench(chosen, shapes=shapes) as bench:
        dense = None
        for key, path in files.items():
            try:
                bench.load("model", path)
                bench.run("model", samples, out)
            except CandidateFailure as failure:
                print(f"{target}: {key}: {failure.reason}")
                continue
            outputs = scoring.read_outputs(out)
            dense = dense or outputs
            scores[key] = scoring.score(metric, outputs, labels, dense)
    measured = fresh.remeasure(
        {key: path for key, path in files.items() if key in scores},
        files["dense, fp32"],
        example,
        lambda: Bench(chosen, shapes=shapes),
    )
    print(f"\n**{name}, {chosen.description}** ({metric.name}, {sum(map(len, labels))} test examples)\n")
    print("| model | metric | speedup | file |\n| --- | --- | --- | --- |")
    for key, score in scores.items():
        if key not in measured:
            continue
        _, speedup = measured[key]
        print(
            f"| {key} | {score.value:.4f} [{score.ci_low:.4f}, {score.ci_high:.4f}] | "
            f"{formatting.speedup(speedup.value, speedup.ci_low, speedup.ci_high)} | {formatting.size(files[key].stat().st_size)} |",
            flush=True,
        )
    contended = max(float(np.max(s.conditions["contended"])) for _, s in measured.values())
    print(f"\ncontended at most {contended:.0%} of a measurement", flush=True)


if __name__ == "__main__":
    main()
