"""What a sequentially compensated candidate costs, now and before: CPU seconds, and the divergence that it reaches.

    python benchmarks/refit_cost.py [digits digits-vit resnet20 resnet56 wide_cnn minilm] --before FOLDER [--levels 0.25,0.5]

Uniform recipes (channels; for transformers neurons) with ``obs+batchnorm+sequential`` (MiniLM: ``obs+sequential``). The first candidate
pays for what all share (statistics of calibration) and is not counted; the others are pruned in the same process, in both versions in
turn. CPU seconds are those of all threads. The divergence is KL on the test split. resnet56 has 56 layers and random weights: its
divergence says nothing and is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import workloads
from common import ROOT, heading

PATTERNS = {"digits-vit": "neuron", "minilm": "neuron"}


def resnet56() -> Any:
    made = workloads.resnet20()
    torch.manual_seed(0)
    model = workloads.ResNet20()
    widths = [16, 16, 32, 64]
    for stage in (1, 2, 3):
        blocks = [
            workloads.Block(
                widths[stage - 1 if i == 0 else stage], widths[stage], widths[stage], 2 if i == 0 and stage > 1 else 1
            )
            for i in range(9)
        ]
        setattr(model, f"layer{stage}", torch.nn.Sequential(*blocks))
    model.train()
    with torch.no_grad():
        for inputs, _ in made.batches("calibration"):
            model(*inputs)

    return dataclasses.replace(made, model=model.eval(), name="resnet56")


def load(name: str) -> Any:
    from hwprune.workload import loading

    return (
        loading.load(f"demo:{name}")
        if name.startswith("digits")
        else resnet56()
        if name == "resnet56"
        else getattr(workloads, name)()
    )


@torch.inference_mode()
def divergence(model: torch.nn.Module, dense: torch.nn.Module, batches: Any) -> float:
    total, count = 0.0, 0
    for inputs, _ in batches:
        ours, theirs = (one(*inputs).double().log_softmax(-1) for one in (model, dense))
        total += float((theirs.exp() * (theirs - ours)).sum())
        count += len(ours)
    return total / count


def worker(name: str, levels: list[float]) -> None:
    """Prints a JSON line a level."""
    from hwprune.pruning.pruner import Pruner
    from hwprune.pruning.uniform import uniform_recipe

    made = load(name)
    pruner = Pruner(made)
    compensation = "obs+sequential" if name == "minilm" else "obs+batchnorm+sequential"
    recipes = [uniform_recipe(pruner, PATTERNS.get(name, "channel"), level, "l2", compensation) for level in [0.125, *levels]]
    for place, recipe in enumerate(recipes):
        start, wall = time.process_time(), time.monotonic()
        candidate = pruner.prune(recipe)
        spent = {"cpu": time.process_time() - start, "wall": time.monotonic() - wall}
        if place:
            kl = None if name == "resnet56" else divergence(candidate.module, made.model, made.batches("test"))
            print(json.dumps({"level": levels[place - 1], **spent, "kl": kl}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["digits", "digits-vit", "resnet20", "resnet56", "wide_cnn", "minilm"])
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--levels", default="0.25,0.375,0.5,0.625")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    levels = [float(level) for level in options.levels.split(",")]
    if options.worker:
        return worker(options.names[0], levels)
    heading("The cost of sequential compensation")
    print(
        "| network | level | CPU s before | now | ratio | KL before | now |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        flush=True,
    )
    for name in options.names:
        rows = {}
        for arm, root in {"before": options.before.resolve(), "now": ROOT}.items():
            path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
            command = [sys.executable, __file__, name, "--worker", "--before", ".", "--levels", options.levels]
            done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name} {arm}: {done.stderr[-500:]}", file=sys.stderr)
            rows[arm] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"level"')]
        for old, new in zip(rows["before"], rows["now"], strict=False):
            kl = ["" if one["kl"] is None else f"{one['kl']:.4f}" for one in (old, new)]
            print(
                f"| {name} | {new['level']:g} | {old['cpu']:.2f} | {new['cpu']:.2f} | {old['cpu'] / new['cpu']:.1f} | {kl[0]} | {kl[1]} |"
            )
        if rows["before"] and rows["now"]:
            ratio = statistics.geometric_mean(
                [old["cpu"] / new["cpu"] for old, new in zip(rows["before"], rows["now"], strict=False)]
            )
            print(f"| **{name}** | all | | | **{ratio:.1f}** | | |", flush=True)
    return None


if __name__ == "__main__":
    main()
