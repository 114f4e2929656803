"""Accuracy without training: patterns x sparsity x criterion x compensation, on the test split (make bench-oneshot).

    python benchmarks/oneshot.py [resnet20 wide_cnn minilm] [--out docs/oneshot.md] [--quick]

Every row is pruned with the statistics of 1,024 calibration examples, nothing is trained. Loss is the mean cross-entropy. Recipes are uniform: the
same sparsity everywhere, which is no good recipe, but the same one for all methods.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import workloads
from common import heading

from hwprune.errors import HwpruneError
from hwprune.pruning.pruner import Pruner
from hwprune.pruning.uniform import uniform_recipe

STRUCTURED = [
    ("l1", "none"), ("l1", "batchnorm"), ("l2", "batchnorm"), ("fpgm", "batchnorm"), ("slimming", "batchnorm"), ("lamp", "batchnorm"),
    ("apoz", "batchnorm"), ("wanda", "batchnorm"), ("flap", "bias"), ("gradient", "batchnorm"), ("obd", "batchnorm"), ("taylor", "batchnorm"),
    ("obs", "batchnorm"), ("obs", "meanvar"), ("l1", "obs+batchnorm"), ("taylor", "obs+batchnorm"), ("obs", "obs"), ("obs", "obs+batchnorm"),
    ("obs", "obs+sequential"),
]  # fmt: skip
PLAIN = {"batchnorm": "bias"}
"""What stands in for batch-norm re-estimation where there is no batch norm."""
MASKS = [
    ("l1", "none"), ("wanda", "none"), ("ria", "none"), ("obd", "none"), ("obs", "none"), ("wanda", "obs"), ("sparsegpt", "obs"),
    ("obs", "lstsq"), ("obs", "lstsq+sequential"), ("sparsegpt", "obs+sequential"),
]  # fmt: skip
FEW = [("l1", "none"), ("wanda", "none"), ("sparsegpt", "obs")]
TRANSFORMER = [("l1", "none"), ("l1", "bias"), ("flap", "bias"), ("obs", "obs"), ("obs", "obs+sequential")]
INFLUENCE = [("block_influence", "none"), ("block_influence", "batchnorm"), ("block_influence", "sequential")]
WIDE = [("l1", "batchnorm"), ("l1", "obs+batchnorm"), ("obs", "obs+batchnorm"), ("obs", "obs+sequential")]
PLAN = {
    "resnet20": {
        "channel": ([0.3, 0.5, 0.7], STRUCTURED),
        "branch": ([0.12, 0.23, 0.34], INFLUENCE),
        "2:4": ([0.5], MASKS),
        "2:4:permuted": ([0.5], FEW),
        "unstructured": ([0.5, 0.7, 0.9], MASKS),
    },
    "wide_cnn": {"channel": ([0.3, 0.5, 0.7], WIDE), "2:4": ([0.5], FEW)},
    "minilm": {
        "unstructured": ([0.5], FEW),
        "neuron": ([0.3, 0.5, 0.7], TRANSFORMER),
        "head": ([0.5], TRANSFORMER),
        "2:4": (
            [0.5],
            [
                ("l1", "none"),
                ("wanda", "none"),
                ("ria", "none"),
                ("wanda", "obs"),
                ("sparsegpt", "obs"),
                ("sparsegpt", "obs+sequential"),
            ],
        ),
    },
}


def test_score(module: torch.nn.Module, workload: workloads.hwprune.Workload) -> tuple[float, float, int]:
    """Accuracy in percent, mean cross-entropy, and the number of examples."""
    right, loss, count = 0.0, 0.0, 0
    with torch.no_grad():
        for inputs, labels in workload.batches("test"):
            logits = module(*inputs)
            right += float((logits.argmax(dim=1) == labels).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
    return 100 * right / count, loss / count, count


def rows(name: str, quick: bool, only: list[str] | None) -> Iterator[str]:
    workload = getattr(workloads, name)()
    pruner = Pruner(workload)
    has_norm = "batchnorm" in pruner.default_compensation()
    accuracy, loss, count = test_score(workload.model, workload)
    error = (accuracy * (100 - accuracy) / count) ** 0.5
    yield f"\n## {workload.name}\n"
    yield f"Dense: {accuracy:.2f} % (standard error {error:.2f}), cross-entropy {loss:.3f}, {count} test examples.\n"
    for pattern, (levels, methods) in PLAN[name].items():
        if only and pattern not in only:
            continue
        chosen = levels[len(levels) // 2 : len(levels) // 2 + 1] if quick else levels
        yield f"\n### {pattern}\n"
        yield "| method | compensation | " + " | ".join(f"{level:.0%}" for level in chosen) + " | s |"
        yield "| --- | --- |" + " ---: |" * (len(chosen) + 1)
        for criterion, steps in dict.fromkeys(
            (c, s if has_norm else "+".join(PLAIN.get(one, one) for one in s.split("+"))) for c, s in methods
        ):
            cells, spent = [], 0.0
            for level in chosen:
                start = time.perf_counter()
                try:
                    candidate = pruner.prune(uniform_recipe(pruner, pattern, level, criterion, steps))
                except HwpruneError as reason:
                    cells.append("-")
                    print(f"{name} {pattern} {level} {criterion} {steps}: {reason}", file=sys.stderr)
                    continue
                spent = max(spent, time.perf_counter() - start)
                accuracy, loss, _ = test_score(candidate.module, workload)
                cells.append(f"{accuracy:.1f} ({loss:.2f})")
            yield f"| {criterion} | {steps} | " + " | ".join(cells) + f" | {spent:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[], help="resnet20 wide_cnn minilm")
    parser.add_argument("--only", metavar="PATTERNS", help="these patterns, joined by commas")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="the middle level only")
    options = parser.parse_args()
    if not workloads.available():
        sys.exit(f"the data are not at {workloads.DATA}: set HWPRUNE_DATA")
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        heading("One-shot pruning without training")
    lines = [
        captured.getvalue().rstrip(),
        "",
        "Cells show test accuracy in percent, with mean cross-entropy in parentheses. Seed 0. `s` is the time of the longest "
        "pruning in the row, including statistics that no earlier row had computed.",
    ]
    print("\n".join(lines), flush=True)
    for name in options.names or list(PLAN):
        for line in rows(name, options.quick, options.only.split(",") if options.only else None):
            lines.append(line)
            print(line, flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", "utf8")


if __name__ == "__main__":
    main()
