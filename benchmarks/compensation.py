"""Does a compensation hold up on data that it was not made with? Divergence and accuracy on the test split.

    python benchmarks/compensation.py [resnet20 wide_cnn minilm digits] [--levels 0.25,0.5] [--examples 128,512,1024] [--draws 5]

For each network, uniform recipes (channels, neurons; heads by half of the level) with: the quick compensation; sequential least squares
with a fixed ridge of 1 % on all calibration examples; and sequential as it is, where held-out examples decide. ``KL / quick`` is the
ratio of the test divergences, with a 95 % interval over draws of the calibration data (a t interval of the logarithms).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
import workloads
from common import heading

import hwprune
from hwprune.compensation import sequential
from hwprune.compensation.refit import Sample, refit
from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.pruning.uniform import uniform_recipe
from hwprune.records.recipe import Recipe
from hwprune.second_order import hessian
from hwprune.workload import loading

BATCH = 64
T975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Quantiles of Student's t for so many draws."""


def fixed_ridge(
    fitted: Sample, held: Sample | None, old: torch.Tensor, keep: torch.Tensor | None, constant: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares on all examples with a ridge of 1 % of the mean diagonal; nothing is held out."""
    assert keep is None, "recipes of this benchmark have no masks"
    x, y = fitted if held is None else tuple(torch.cat(pair, dim=1) for pair in zip(fitted, held, strict=True))
    centre_x, centre_y = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    if constant is not None:
        x, y = x - centre_x, y - centre_y
    gram = (x.mT @ x).double()
    damped = hessian.damp(gram)
    target = (y.mT @ x).double() + old @ (damped - gram)
    new = torch.cholesky_solve(target.mT, torch.linalg.cholesky(damped)).mT
    return new, centre_y[:, 0].double() - (new @ centre_x[:, 0, :, None].double())[:, :, 0]


def workload_of(name: str, examples: int, draw: int) -> hwprune.Workload:
    """The workload with so many calibration examples, drawn from those of its train split where it has one."""
    made = loading.load(f"demo:{name}") if name.startswith("digits") else getattr(workloads, name)(seed=draw)
    pairs = list(made.batches("train" if made.train is not None else "calibration"))
    columns = [torch.cat(column) for column in zip(*[inputs for inputs, _ in pairs], strict=True)]
    targets = torch.cat([target for _, target in pairs])
    picked = torch.randperm(len(targets), generator=torch.Generator().manual_seed(100 + draw))[:examples]
    batches = [(tuple(column[part] for column in columns), targets[part]) for part in picked.split(BATCH)]
    return dataclasses.replace(made, calibration=batches, train=None)  # else a `Pruner` takes more where these are few


def recipe_of(pruner: Pruner, level: float, compensation: str) -> Recipe:
    choices: list[hwprune.UnitChoice] = []
    for pattern, share in (("channel", level), ("neuron", level), ("head", level / 2)):
        try:
            choices += uniform_recipe(pruner, pattern, share, "obs", compensation).choices
        except UsageError:  # the network has none
            continue
    return Recipe(tuple(choices), compensation)


def judged(module: torch.nn.Module, workload: hwprune.Workload) -> tuple[float, float]:
    """Accuracy in percent, and mean KL from the dense model, on the test split."""
    right = divergence = count = 0.0
    with torch.no_grad():
        for inputs, labels in workload.batches("test"):
            dense, mine = (m(*inputs).log_softmax(dim=-1) for m in (workload.model, module))
            right += float((mine.argmax(dim=1) == labels).sum())
            divergence += float((dense.exp() * (dense - mine)).sum())
            count += len(labels)
    return 100 * right / count, divergence / count


def rows(name: str, levels: list[float], sizes: list[int], draws: int) -> Iterator[str]:
    for examples in sizes:
        found: dict[tuple[float, str], list[tuple[float, float, float]]] = {}
        for draw in range(draws):
            workload = workload_of(name, examples, draw)
            pruner = Pruner(workload)
            quick = pruner.default_compensation()
            for level in levels:
                for kind, steps, how in (
                    ("quick", quick, refit),
                    ("fixed", "obs+sequential", fixed_ridge),
                    ("held out", "obs+sequential", refit),
                ):
                    sequential.refit = how
                    recipe = recipe_of(pruner, level, steps)
                    pruner.prune(recipe)
                    start = time.process_time()
                    candidate = pruner.prune(recipe)
                    spent = time.process_time() - start
                    found.setdefault((level, kind), []).append((*judged(candidate.module, workload), spent))
            sequential.refit = refit
        for (level, kind), values in found.items():
            accuracy, divergence, spent = np.array(values).mean(axis=0)
            ratios = np.log([one[1] / other[1] for one, other in zip(values, found[level, "quick"], strict=True)])
            half = T975.get(draws, 1.96) * ratios.std(ddof=1) / math.sqrt(draws) if draws > 1 else math.nan
            interval = (
                f"{math.exp(ratios.mean()):.2f} [{math.exp(ratios.mean() - half):.2f}, {math.exp(ratios.mean() + half):.2f}]"
            )
            yield f"| {name} | {examples} | {level:.2f} | {kind} | {accuracy:.2f} | {divergence:.4f} | {interval} | {spent:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["digits", "resnet20", "wide_cnn", "minilm"])
    parser.add_argument("--levels", default="0.25,0.5")
    parser.add_argument("--examples", default="128,512,1024")
    parser.add_argument("--draws", type=int, default=5)
    options = parser.parse_args()
    heading("Compensation on unseen data")
    print("| network | calibration examples | level | sequential | test accuracy | test KL | KL / quick | CPU s |")
    print("| --- | ---: | ---: | --- | ---: | ---: | --- | ---: |")
    for name in options.names:
        levels, sizes = [float(x) for x in options.levels.split(",")], [int(x) for x in options.examples.split(",")]
        for line in rows(name, levels, sizes, options.draws):
            print(line, flush=True)


if __name__ == "__main__":
    main()
