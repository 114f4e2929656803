"""The search engine itself: how well divergence is predicted, candidates a minute, the cost of asking, one search after another.

    python benchmarks/engine.py [--only prior,throughput,overhead] [--seeds 2]

prior       rank correlation of predicted and evaluated divergence over random recipes, nothing evaluated before
throughput  candidates a minute on ResNet-20, alternating with a plain pipeline (deepcopy, prune, batch-norm re-estimation,
            torch.onnx.export, session, 100 timed runs, accuracy on the same images)
overhead    seconds of ask + tell at 5,000 finished trials
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import optuna
import torch
import workloads
from common import heading
from scipy.stats import spearmanr

from hwprune import patterns
from hwprune.calibration import gradients, sensitivity
from hwprune.latency import fingerprint
from hwprune.latency.bench import Bench
from hwprune.latency.paired import Settings
from hwprune.latency.source import Measured
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.records.recipe import Recipe
from hwprune.records.trial import Trial
from hwprune.searching.evaluating.dense import EXAMPLE
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.resolved_job import resolve
from hwprune.searching.sampling import samplers, search_model
from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.problem import AllocationProblem, Choice, Item
from hwprune.searching.space import fitting, space_file
from hwprune.workload.scoring import divergence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="prior,throughput,overhead")
    parser.add_argument("--workloads", default="resnet20,wide_cnn")
    parser.add_argument("--recipes", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    heading("the search engine")
    parts = options.only.split(",")
    if "prior" in parts:
        prior(options)
    if "throughput" in parts:
        throughput(options.pairs)
    if "overhead" in parts:
        overhead()


# -- how well divergence is predicted ----------------------------------------------------------


def prior(options: argparse.Namespace) -> None:
    print("## Predicted against evaluated KL (1,000 images), Spearman's rank correlation; nothing evaluated before")
    print("| workload | recipes | sum of local errors | Fisher, T = 1 | T = 2 | T = 3 | T = 4 | T = 3 with interactions |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")

    for name in options.workloads.split(","):
        with tempfile.TemporaryDirectory() as folder:
            pruner = Pruner(getattr(workloads, name)(), Path(folder))
            space = fitting.build(space_file.load("default"), pruner, targets.load("cpu"), fingerprint.isa())
            made = {
                unit_space.unit: pruner.options(unit_space.unit, pattern, "obs", levels, "obs")
                for unit_space in space.units
                for pattern, levels in unit_space.levels.items()
                if pattern != patterns.BRANCH
            }
            branches = [unit_space.unit for unit_space in space.units if patterns.BRANCH in unit_space.levels]
            wanted = {unit: (unit, len(found)) for unit, found in made.items()}
            rows = {}
            for temperature in (1.0, 2.0, 3.0, 4.0):
                gradients.TEMPERATURE = temperature
                rows[temperature] = sensitivity.responses(
                    pruner.graph, pruner.workload, pruner.units, wanted, made.__getitem__, branches
                )
            truth, told = recipes(pruner, space, made, rows, options.recipes)
            for label, keep in (
                ("all", np.ones(len(truth), bool)),
                ("no branch dropped", np.array([t["branches"] == 0 for t in told])),
            ):
                cells = []
                for key in ("local", 1.0, 2.0, 3.0, 4.0, "pairs"):
                    if key == "local" and label == "all":
                        cells.append("(branches have none)")
                        continue
                    values = np.array([t[key] for t in told])[keep]
                    cells.append(f"{spearmanr(np.array(truth)[keep], values)[0]:.3f}")
                print(f"| {name}, {label} | {keep.sum()} | " + " | ".join(cells) + " |")
    print()


def recipes(pruner: Pruner, space: Any, made: Any, rows: Any, count: int) -> tuple[list[float], list[dict[Any, float]]]:
    """Random recipes around a common level; every second one drops branches too."""
    batches = list(pruner.workload.batches("validation"))
    metric = pruner.workload.scoring

    def outputs(module: torch.nn.Module) -> list[tuple[torch.Tensor, ...]]:
        with torch.no_grad():
            return [(module(*inputs),) for inputs, _ in batches]

    dense, labels = outputs(pruner.graph.module), [target for _, target in batches]
    truth, told = [], []
    for seed in range(count):
        draw = random.Random(seed)
        level, dropped = draw.random() * 0.6, (draw.random() * 0.25 if seed % 2 else 0.0)
        parameters: dict[str, Any] = {}
        for unit_space in space.units:
            parameters |= unit_space.parameters(
                int(draw.random() < dropped)
                if unit_space.is_branch
                else min(unit_space.depth, max(0, round(draw.gauss(level, 0.25) * unit_space.depth)))
            )
        recipe = space.recipe(parameters)
        if not recipe.choices:
            continue
        candidate = pruner.prune(Recipe(recipe.choices, "obs"))
        truth.append(divergence(metric, outputs(candidate.module), dense, labels).value)
        chosen: dict[Any, list[Any]] = {t: [] for t in rows}
        local, gone = 0.0, 0
        for choice in recipe.choices:
            if choice.pattern == patterns.BRANCH:
                place, gone = 0, gone + 1
            else:
                unit_space = next(k for k in space.units if k.unit == choice.unit)
                place = unit_space.levels[choice.pattern].index(choice.sparsity)
                local += made[choice.unit][place].error
            for t, found in rows.items():
                chosen[t].append(found[choice.unit][:, place])
        row: dict[Any, float] = {t: sum(float(r.square().mean()) / 2 for r in found) for t, found in chosen.items()}
        row |= {"local": local, "pairs": float(torch.stack(chosen[3.0]).sum(dim=0).square().mean()) / 2, "branches": gone}
        told.append(row)
    return truth, told


# -- candidates a minute -------------------------------------------------------------------------


class Watcher(Progress):
    """Keeps every trial and when it came."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.moments: list[float] = []

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int, left_s: float | None) -> None:  # noqa: ARG002
        self.trials.append(trial)
        self.moments.append(time.perf_counter())


def throughput(pairs: int) -> None:
    """Candidates of a real search, in turn with the plain pipeline on the same recipes."""
    workload = workloads.resnet20()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pruner = Pruner(workload, folder / "database")
        target = targets.load("cpu")
        with Bench(target) as bench:
            run = folder / "run"
            source = Measured(bench, run / "baseline" / EXAMPLE, Settings(clock=bench.clock))
            evaluator = Evaluator(pruner, bench, source, target, run)
            baseline = evaluator.dense.prepare(evaluator.source)
            space = fitting.build(space_file.load("default"), pruner, target, fingerprint.isa())
            model = search_model.build_model(
                resolve(Job("", trials=60)), pruner, space, bench, bench.identity(), baseline, {}, lambda _: None
            )
            from hwprune.searching.loop import Countdown, Work
            from hwprune.searching.study.store import Store

            print("## Candidates a minute, ResNet-20, ORT CPU, accuracy on 1,000 images")
            print("| sampler | plain pipeline, s | a trial of the search, s | ratio [least, most] | stopped early |")
            print("| --- | --- | --- | --- | --- |")
            for sampler in ("knapsack", "random"):
                store = Store(f"sqlite:///{folder / sampler}.db", space, create=True)
                context = model.context(200, store.distributions())
                watcher = Watcher()
                ours, plain, ratios = [], [], []
                seconds: dict[str, float] = {}
                for block in range(pairs):
                    job = Job("", trials=8 * (block + 1), sampler=sampler)
                    start = time.perf_counter()
                    made = samplers.make(sampler, 0, context)
                    Work(job, store, space, evaluator, model, made, watcher, Countdown(job.trials, 0.0, start)).run()
                    ours.append((time.perf_counter() - start) / 8)
                    plain.append(plain_trial(workload, pruner, watcher.trials[-1].recipe, seconds, folder))
                    ratios.append(plain[-1] / ours[-1])
                stopped = sum(t.state == "stopped" for t in watcher.trials)
                print(
                    f"| {sampler} | {statistics.median(plain):.2f} | {statistics.median(ours):.3f} | "
                    f"{statistics.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}] | {stopped} of {len(watcher.trials)} |"
                )
                stages: dict[str, float] = {}
                for trial in watcher.trials:
                    for stage, value in trial.seconds.items():
                        stages[stage] = stages.get(stage, 0.0) + value / len(watcher.trials)
                stages["ask, tell, predict"] = statistics.fmean(ours) - sum(stages.values())
                print(f"\n{sampler}, a trial by stage: " + ", ".join(f"{k} {1e3 * v:.0f} ms" for k, v in stages.items()))
                total = sum(seconds.values())
                print("plain by stage: " + ", ".join(f"{k} {100 * v / total:.0f} %" for k, v in seconds.items()) + "\n")


def plain_trial(workload: Any, pruner: Pruner, recipe: Recipe, seconds: dict[str, float], folder: Path) -> float:
    """What one would write by hand; the pruning itself is ours, so that only the pipeline differs."""
    begin = mark = time.perf_counter()

    def stage(name: str) -> None:
        nonlocal mark
        now = time.perf_counter()
        seconds[name] = seconds.get(name, 0.0) + now - mark
        mark = now

    model = copy.deepcopy(workload.model)
    stage("deepcopy")
    module = pruner.prune(Recipe(recipe.choices, "none")).module
    stage("prune")
    del model
    norms = [b for n, b in module.named_buffers() if "running" in n]
    assert norms
    reestimate(module, workload)
    stage("batch norm")
    path = folder / "plain.onnx"
    program = torch.onnx.export(module, workload.example_inputs, dynamo=True, dynamic_shapes=({0: "n"},), verbose=False)
    program.save(str(path))
    stage("export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    stage("session")
    x = workload.example_inputs[0].numpy()
    for _ in range(100):
        session.run(None, {name: x})
    stage("100 timed runs")
    right = 0
    for (images,), labels in ((i, t) for i, t in workload.batches("validation")):
        right += int((session.run(None, {name: images.numpy()})[0].argmax(1) == labels.numpy()).sum())
    stage("accuracy")
    return time.perf_counter() - begin


@torch.no_grad()
def reestimate(module: torch.fx.GraphModule, workload: Any) -> None:
    """The usual way: training mode over the calibration images."""
    module.train()
    for inputs, _ in workload.batches("calibration"):
        module(*inputs)
    module.eval()


# -- the cost of asking ----------------------------------------------------------------------------


def overhead() -> None:
    """5,000 finished trials of 12 items with 10 choices each, in SQLite."""
    from hwprune.searching.space.space import SearchSpace
    from hwprune.searching.space.unit_space import UnitSpace
    from hwprune.searching.study.store import Store

    draw = np.random.default_rng(0)
    unit_spaces = tuple(
        UnitSpace(f"u{u}", "channel", 160, {"channel": tuple((i + 1) / 11 for i in range(9))}, ("obs",)) for u in range(12)
    )
    space = SearchSpace(space_file.load("default"), unit_spaces, "none", ())
    items = []
    for unit_space in unit_spaces:
        rows = np.outer(np.linspace(0, 1, 10), draw.standard_normal(512)) * 0.1
        items.append(
            Item(
                unit_space.unit,
                tuple(
                    Choice(unit_space.parameters(i), float(np.square(r).mean()) / 2, 0.01 * i, {}, r) for i, r in enumerate(rows)
                ),
            )
        )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{folder}/a.db", space, create=True)
        frozen = []
        for number in range(5000):
            levels = [int(draw.integers(0, 10)) for _ in unit_spaces]
            chosen = {k: v for one, i in zip(unit_spaces, levels, strict=True) for k, v in one.parameters(i).items()}
            kl = 0.001 * sum(levels) ** 2 / 10
            trial = measured(number, space.recipe(chosen), kl, 1 + sum(levels) / 60)
            frozen.append(
                optuna.trial.create_trial(
                    params=chosen, distributions=store.distributions(), values=[trial.drop, trial.speedup.value],
                    user_attrs={"divergence": kl}, system_attrs={"hwprune:trial": trial.to_json()},
                )
            )  # fmt: skip
        store.study.add_trials(frozen)
        print("## ask + tell at 5,000 finished trials (SQLite), seconds")
        print("| sampler | first, which reads them all | median of 7 after it | ask | tell |")
        print("| --- | --- | --- | --- | --- |")
        for name in ("knapsack", "random", "tpe", "nsga2"):
            sampler = samplers.make(
                name, 0, samplers.SamplerContext(Posterior(AllocationProblem(items)), trials=6000, space=store.distributions())
            )
            asks, tells = [], []
            for _ in range(8):
                start = time.perf_counter()
                asked = store.ask(sampler)
                recipe = space.recipe(asked.params)
                store.known(asked, recipe)
                middle = time.perf_counter()
                store.finisher.tell(asked, measured(asked.number, recipe, 0.1, 1.5), {})
                store.trials()
                asks.append(middle - start)
                tells.append(time.perf_counter() - middle)
            rest = [a + t for a, t in zip(asks[1:], tells[1:], strict=True)]
            print(
                f"| {name} | {asks[0] + tells[0]:.2f} | {statistics.median(rest):.3f} | {statistics.median(asks[1:]):.3f} | "
                f"{statistics.median(tells[1:]):.3f} |"
            )
        store.close()
    print()


def measured(number: int, recipe: Recipe, kl: float, speedup: float) -> Trial:
    from hwprune.records.measurement import Measurement

    def of(value: float, unit: str) -> Measurement:
        return Measurement(value, unit, value, value, 1)

    return Trial(
        number, recipe, "measured", of(0.9, "top1"), kl / 3, of(1e-3 / speedup, "s"), of(speedup, "x"), 1000, 1000, 4000,
        divergence=of(kl, "nats"),
    )  # fmt: skip


if __name__ == "__main__":
    main()
