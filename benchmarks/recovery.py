"""What a little training brings back: accuracy against sparsity, for every way of training.

    python benchmarks/recovery.py --workload digits|digits_vit|resnet20|wide_cnn|minilm [--pattern channel] [--sparsities 0.5,0.7]
                                  [--epochs 2] [--seeds 3] [--examples N] [--methods finetune,distill,...]
                                  [--rate R | --rate-of-first-seed] [--out FILE]

One-shot is pruning with the default compensation; all others have the same number of training examples, after a search for
their learning rate. Gradual methods start
from the dense weights and use 60 % of the epochs while sparsity rises. Accuracy is of the test split, of the weights that did
best on validation; means over seeds with 95 % intervals (Student's t). ``--examples`` takes only the first of the training data.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import workloads
from common import heading

from hwprune import uniform_recipe
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import Recovered, prune_gradually, recover, validator_of
from hwprune.recovery.tickets.ticket_result import Interval
from hwprune.workload import demos
from hwprune.workload.workload import Workload

METHODS = (
    "finetune", "magnitude", "distill", "distill+features", "gradual", "iterative", "movement", "soft-movement", "platon", "growing", "lasso",
)  # fmt: skip
CRITERION = {"unstructured": "l1", "channel": "obs", "neuron": "obs", "head": "obs"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--pattern", default="channel")
    parser.add_argument("--sparsities", default="0.5,0.7,0.9")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rate", type=float, help="learning rate of all; default: searched for")
    parser.add_argument(
        "--rate-of-first-seed", action="store_true", help="the other seeds take the rate that the first has found"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    heading("recovery training")
    workload = load(options.workload, options.examples)
    pruner = Pruner(workload)
    count = sum(len(inputs[0]) for inputs, _ in workload.batches("train"))
    dense = score(pruner, pruner.graph.module)
    print(
        f"{workload.name}, {options.pattern}, {options.epochs:g} epochs of {count} training examples, {options.seeds} seeds; "
        f"dense {dense:.4f} on the test split\n"
    )
    methods = options.methods.split(",")
    sparsities = [float(text) for text in options.sparsities.split(",")]
    lines = [
        "| method | " + " | ".join(f"{s:g} removed" for s in sparsities) + " | seconds |",
        "| --- |" + " --- |" * (len(sparsities) + 1),
    ]
    cells: dict[str, list[str]] = {"one-shot": []}
    spent: dict[str, list[float]] = {}
    for sparsity in sparsities:
        start = time.monotonic()
        candidate = pruner.prune(recipe_of(pruner, options.pattern, sparsity))
        spent.setdefault("one-shot", []).append(time.monotonic() - start)
        cells["one-shot"].append(f"{score(pruner, candidate.module):.4f}")
        print(f"  {sparsity:g} one-shot: {cells['one-shot'][-1]}", flush=True)
        values: dict[str, list[float]] = {}
        for method in methods:
            rate = options.rate
            for seed in range(options.seeds):
                start = time.monotonic()
                made = trained(pruner, candidate, method, options.epochs, seed, rate)
                spent.setdefault(method, []).append(time.monotonic() - start)
                values.setdefault(method, []).append(score(pruner, made.candidate.module))
                used = (made.deciding or made.outcome).rate
                print(f"    {sparsity:g} {method}, seed {seed}: {values[method][-1]:.4f} with rate {used:g}", flush=True)
                if options.rate_of_first_seed:
                    rate = used
            cells.setdefault(method, []).append(cell(values[method]))
            print(f"  {sparsity:g} {method}: {cells[method][-1]}", flush=True)
        for a, b in (
            ("distill", "finetune"),
            ("gradual", "finetune"),
            ("gradual", "magnitude"),
            ("movement", "gradual"),
            ("platon", "gradual"),
        ):
            if a in values and b in values and options.seeds > 1:
                gain = Interval.of([x - y for x, y in zip(values[a], values[b], strict=True)])
                print(
                    f"  {sparsity:g} {a} over {b}, paired: {100 * gain.mean:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}] points"
                )
    for method, found in cells.items():
        lines.append(f"| {method} | " + " | ".join(found) + f" | {statistics.median(spent[method]):.1f} |")
    print("\n" + "\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


def load(name: str, examples: int) -> Workload:
    made = demos.get(name.replace("_", "-")) if name.startswith("digits") else getattr(workloads, name)()
    if not examples:
        return made
    kept, count = [], 0
    for inputs, targets in made.batches("train"):
        kept.append((inputs if len(inputs) > 1 else inputs[0], targets))
        count += len(inputs[0])
        if count >= examples:
            break
    return replace(made, train=kept)


def recipe_of(pruner: Pruner, pattern: str, sparsity: float) -> Recipe:
    return uniform_recipe(pruner, pattern, sparsity, criterion=CRITERION.get(pattern, "l1"))


def trained(pruner: Pruner, candidate: Any, method: str, epochs: float, seed: int, rate: float | None = None) -> Recovered:
    if method in ("finetune", "distill", "distill+features"):
        kind, _, features = method.partition("+")
        return recover(pruner, candidate, Plan(kind, epochs, rate=rate, seed=seed, features=1.0 if features else 0.0))
    if (
        method == "magnitude"
    ):  # what gradual pruning is compared with in its paper: the same criterion, all at once, nothing repaired
        plain = Recipe(tuple(replace(c, method="l1") for c in candidate.recipe.choices), "none")
        return recover(pruner, pruner.prune(plain), Plan("finetune", epochs, rate=rate, seed=seed))
    schedule = "iterative:5" if method == "iterative" else "cubic"
    decider = "gradual" if method == "iterative" else method
    plain = Recipe(tuple(replace(c, method="l1") for c in candidate.recipe.choices), "none")
    return prune_gradually(pruner, plain, Plan("gradual", epochs, rate=rate, schedule=schedule, seed=seed), decider)


def score(pruner: Pruner, module: Any) -> float:
    judge = validator_of(pruner)
    judge.workload = replace(pruner.workload, validation=pruner.workload.test)
    judge.teach(pruner.graph.module)
    return judge(module).value


def cell(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4f}"
    found = Interval.of(values)
    return f"{found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]"


if __name__ == "__main__":
    main()
