"""Are the drops that searches tell the true ones, and how far is a dense model's confidence to be trusted?

    python benchmarks/delivered.py wide_cnn minilm --keep RUNS
    python benchmarks/told_drops.py wide_cnn RUNS/wide_cnn-0-now RUNS/wide_cnn-1-now [--off-by 0.05,0.1,0.15]

First each candidate whose file was kept: the share of answers that changed, the drop by the dense model's confidence, by labels, as it
is told from both, and on examples that nothing was chosen by: the test split, and the train split (whose images the network has
seen). Then, for several values of `hwprune.workload.confidence.OFF_BY_CHANGED`: how often the drop on the test split is above
``told_high`` (and that on the train split), how often it should be (the test split has noise of its own), the log likelihood of the drops on the test split under
what is told, and what is told minus what came out, for all and for drops below 1.2 points.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
import workloads
from common import heading

import hwprune
from hwprune.records.measurement import Measurement
from hwprune.records.trial import Trial
from hwprune.searching.final.belief import DropBelief
from hwprune.searching.sampling.problem import Limits
from hwprune.workload import confidence, loading, metrics, scoring

Outputs = list[tuple[torch.Tensor, ...]]


class Candidate(NamedTuple):
    """Outputs on validation, and the drop by labels on every split."""

    trial: Trial
    outputs: Outputs
    drops: dict[str, Measurement]


def answers(path: Path, batches: Sequence[tuple[Any, Any]]) -> Outputs:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    found = []
    for inputs, _ in batches:
        given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        found.append(tuple(torch.from_numpy(out) for out in session.run(None, given)))
    return found


def error(measured: Measurement) -> float:
    return max(measured.half_width / 1.959964, 1e-6)


def points(measured: Measurement) -> str:
    return f"{100 * measured.value:.2f} ± {100 * error(measured):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a network of benchmarks/workloads.py, digits or digits-vit")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--off-by", default="0.05,0.1,0.15")
    options = parser.parse_args()
    heading(f"Told and true drops of {options.name}")
    made = loading.load(f"demo:{options.name}") if options.name.startswith("digits") else getattr(workloads, options.name)()
    metric = metrics.get("top1")
    splits = {kind: list(made.batches(kind)) for kind in ("validation", "test", "train") if getattr(made, kind) is not None}
    targets = [target for _, target in splits["validation"]]
    found: dict[Path, list[Candidate]] = {}
    dense: Outputs = []
    temperature: float | None = None
    for run in options.runs:
        reference = {kind: answers(run / "baseline" / "model.onnx", batches) for kind, batches in splits.items()}
        dense, temperature = reference["validation"], confidence.confidence_temperature(metric, reference["validation"], targets)
        found[run] = []
        for trial in hwprune.load(run).trials:
            path = run / "candidates" / str(trial.number) / "model.onnx"
            if not (trial.searched and trial.measured and path.is_file()):
                continue
            outputs = {kind: answers(path, batches) for kind, batches in splits.items()}
            drops = {
                kind: scoring.paired_drop(metric, outputs[kind], reference[kind], [target for _, target in batches])
                for kind, batches in splits.items()
            }
            found[run].append(Candidate(trial, outputs["validation"], drops))

    others = [kind for kind in ("test", "train") if kind in splits]
    print(f"| search | trial | changed | by confidence | by labels | told | {' | '.join(others)} |")
    print("| --- " * (6 + len(others)) + "|")
    for run, candidates in found.items():
        for one in sorted(candidates, key=lambda one: one.drops["validation"].value):
            expected = confidence._confidence_drop(metric, one.outputs, dense, targets, temperature or 1.0)
            assert expected is not None
            told = confidence.estimated_drop(metric, one.outputs, dense, targets, temperature, one.drops["validation"])
            cells = [f"{100 * expected[2]:.1f} %", f"{100 * expected[0]:.2f}", points(one.drops["validation"]), points(told)]
            print(f"| {run.name} | {one.trial.number} | {' | '.join(cells + [points(one.drops[kind]) for kind in others])} |")

    print(
        "\n| off by (of the answers that changed) | above told_high | on the train split | expected | log likelihood | error | error below 1.2 points |"
    )
    print("| ---: " * 7 + "|")
    for value in map(float, options.off_by.split(",")):
        confidence.OFF_BY_CHANGED = value
        above, seen_above, chance, likelihood, wrong, small = 0, 0, 0.0, 0.0, [], []
        for candidates in found.values():
            trials = [
                dataclasses.replace(
                    one.trial,
                    estimated_drop=confidence.estimated_drop(
                        metric, one.outputs, dense, targets, temperature, one.drops["validation"]
                    ),
                )
                for one in candidates
            ]
            belief = DropBelief(trials, Limits())
            for trial, one in zip(trials, candidates, strict=True):
                high, samples, test = belief.high(trial), belief._of(trial), one.drops["test"]
                assert samples is not None
                above += test.value > high
                seen_above += "train" in one.drops and one.drops["train"].value > high
                noise = [NormalDist(float(sample), error(test)) for sample in samples]
                chance += 1 - float(np.mean([normal.cdf(high) for normal in noise]))
                likelihood += math.log(float(np.mean([normal.pdf(test.value) for normal in noise])) + 1e-12)
                wrong.append(test.value - belief.drop(trial))
                if belief.drop(trial) < 0.012:
                    small.append(wrong[-1])
        low = f"{100 * float(np.mean(small)):+.2f}" if small else ""
        print(
            f"| {value:g} | {above} of {len(wrong)} | {seen_above} of {len(wrong)} | {chance:.1f} | {likelihood:.1f} | {100 * float(np.mean(wrong)):+.2f} | {low} |"
        )


if __name__ == "__main__":
    main()
