"""Other pruners on the same splits and the same latency protocol: what each delivers (make bench-search names it).

    python benchmarks/peers.py [resnet20 wide_cnn] [--seed 0] [--tpe-trials 100] [--trials 40] [--only NAME ...]

needs torch-pruning and nvidia-modelopt, in an environment of their own that also sees hwprune's. Ways to the same front:

* ``Torch-Pruning uniform``: MagnitudePruner, one ratio for all layers, 20 ratios, channels as they come and rounded to 8.
* ``Optuna TPE``: Torch-Pruning's cut with a ratio for each layer and a rounding, chosen by Optuna's multi-objective TPE.
* ``... inner layers``: the same, but layers that write to the residual stream are left alone, as one does who has seen that cutting
  them by magnitude ruins a network that is not trained afterwards.
* ``FastNAS``: modelopt's with sizes in steps of 8 channels, one search for each of nine budgets of multiply-accumulates (its own
  constraint), the sensitivities found once.
* ``hwprune``: `hwprune search` as it comes.
* ``hwprune, fresh batch norms``: the same from the network that a search of the wide CNN advises; drops are counted from the network
  that was given, as for all others.

Every candidate of the others gets its batch norms re-estimated on the calibration images, is exported with torch.onnx.export and
scored on the same validation images. The front in (validation drop, latency) of each, at most twelve points, is then measured in
fresh processes against the dense file by hwprune's protocol and scored on the test split, which chooses nothing. Nothing is trained.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import workloads
from common import ROOT, heading
from delivered import Points, row, search
from torch import nn

from hwprune.latency import fresh
from hwprune.latency.bench import Bench
from hwprune.records import pareto, target
from hwprune.workload import sample_files, scoring
from hwprune.workload.running_statistics import refresh_batch_norms
from hwprune.workload.workload import Workload

RATIOS = np.linspace(0.03, 0.9, 20)
BUDGETS = (90, 80, 70, 60, 50, 40, 30, 20, 10)
ROUND_TO = 8
MOST = 12
RUNS = 40


def re_estimate(model: nn.Module, workload: Workload) -> None:
    """Batch-norm statistics of the calibration images, averaged over all of them."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for inputs, _ in workload.batches("calibration"):
            model(*inputs)
    model.eval()


@torch.no_grad()
def score(model: nn.Module, workload: Workload, split: str) -> float:
    outputs, targets = [], []
    for inputs, wanted in workload.batches(split):
        outputs.append((model(*inputs),))
        targets.append(wanted)
    return scoring.score(workload.scoring, outputs, targets, None).value


class Latency:
    """The file's time over the dense file's, by turns in one process; for a first look, as a pipeline of one's own would do it."""

    def __init__(self, dense: Path, example: dict[str, Any]) -> None:
        self.example = example
        self.dense = self.session(dense)

    @staticmethod
    def session(path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def ratio(self, path: Path) -> float:
        mine = self.session(path)
        times: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(2 * RUNS):
            start = time.process_time()
            (mine if turn % 2 else self.dense).run(None, self.example)
            times[bool(turn % 2)].append(time.process_time() - start)
        return float(np.median(times[True]) / np.median(times[False]))


class Arena:
    """A workload, the folder of the files, and what a candidate of any pruner goes through."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        self.workload, self.folder = workload, folder
        self.inputs = tuple(workload.example_inputs)
        self.dense = self.export(copy.deepcopy(workload.model), "dense")
        self.latency = Latency(self.dense, {"x": self.inputs[0].numpy()})
        self.dense_metric = score(workload.model, workload, "validation")
        self.dense_test = score(workload.model, workload, "test")

    def export(self, model: nn.Module, name: str) -> Path:
        path = self.folder / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            torch.onnx.export(model.eval(), self.inputs, str(path), input_names=["x"], dynamo=False)
        return path

    def candidate(self, model: nn.Module, name: str) -> tuple[float, float, Path]:
        """(drop on validation, latency ratio, file) of a pruned model."""
        re_estimate(model, self.workload)
        path = self.export(model, name)
        return self.dense_metric - score(model, self.workload, "validation"), self.latency.ratio(path), path

    def deliver(self, found: list[tuple[float, float, Path, nn.Module]]) -> Points:
        """The front by validation, measured in fresh processes, with drops on the test split."""
        front = pareto.non_dominated([c for c in found if c[1] < 1], lambda c: (c[0], 1 / c[1]))
        front = sorted(front, key=lambda c: c[1])
        if len(front) > MOST:
            front = [front[round(i)] for i in np.linspace(0, len(front) - 1, MOST)]
        example = self.folder / "example.npz"
        sample_files.write_batches([(self.inputs, None)], example)
        cpu = target.load("cpu")
        models = {str(place): c[2] for place, c in enumerate(front)}
        measured = fresh.remeasure(models, self.dense, example, lambda: Bench(cpu))
        points = []
        for place, (_, _, _, model) in enumerate(front):
            if str(place) in measured:
                drop = self.dense_test - score(model, self.workload, "test")
                points.append((drop, measured[str(place)].speedup.value))
        return points


def inner_layers(arena: Arena) -> list[str]:
    """Convolutions whose outputs no other layer writes to."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(arena.workload.model, arena.inputs)
    found = []
    for name, module in arena.workload.model.named_modules():
        if isinstance(module, nn.Conv2d):
            group = graph.get_pruning_group(module, torch_pruning.prune_conv_out_channels, [0])
            writers = {id(dep.target.module) for dep, _ in group if dep.handler == torch_pruning.prune_conv_out_channels}
            found += [name] * (len(writers) == 1)
    return found


def torch_pruning(arena: Arena, ratio: float, round_to: int, by_layer: dict[str, float] | None = None) -> nn.Module:
    """A copy pruned by Torch-Pruning; ``by_layer``: ratios of named layers."""
    import torch_pruning

    model = copy.deepcopy(arena.workload.model)
    layers = dict(model.named_modules())
    ratios = {layers[name]: value for name, value in (by_layer or {}).items()}
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, arena.inputs, importance=torch_pruning.importance.GroupMagnitudeImportance(), pruning_ratio=ratio,
        pruning_ratio_dict=ratios, ignored_layers=[model.fc], round_to=round_to if round_to > 1 else None,
    )  # fmt: skip
    pruner.step()
    return model


def uniform(
    arena: Arena, _options: argparse.Namespace, layers: Sequence[str] = ()
) -> Iterator[tuple[float, float, Path, nn.Module]]:
    """``layers``: the only ones that are pruned; none: all are."""
    for place, (ratio, round_to) in enumerate(itertools.product(RATIOS, (1, ROUND_TO))):
        by_layer = dict.fromkeys(layers, float(ratio))
        model = torch_pruning(arena, 0.0 if layers else float(ratio), round_to, by_layer)
        yield (*arena.candidate(model, f"uniform{place}"), model)


def tpe(arena: Arena, options: argparse.Namespace, layers: Sequence[str] = ()) -> Iterator[tuple[float, float, Path, nn.Module]]:
    """``layers``: the only ones that are pruned; none: all are."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=options.seed))
    names = list(layers) or [name for name, module in arena.workload.model.named_modules() if isinstance(module, nn.Conv2d)]
    for number in range(options.tpe_trials):
        trial = study.ask()
        ratios = {name: trial.suggest_float(name, 0.0, 0.9) for name in names}
        round_to = trial.suggest_categorical("rounding", [1, ROUND_TO])
        model = torch_pruning(arena, 0.0, round_to, ratios)
        drop, ratio, path = arena.candidate(model, f"tpe{number}")
        study.tell(trial, (drop, ratio))
        yield drop, ratio, path, model


def fastnas(arena: Arena, options: argparse.Namespace) -> Iterator[tuple[float, float, Path, nn.Module]]:
    import modelopt.torch.prune as mtp

    images = torch.cat([inputs[0] for inputs, _ in arena.workload.batches("calibration")])
    batches = list(images.split(16))
    ratios = tuple(0.05 * step for step in range(1, 21))
    norm = {"*": {"features_ratio": ratios, "feature_divisor": ROUND_TO}}
    rules = {  # as its defaults, whose divisor of 32 leaves eight configurations of ResNet-20
        "nn.Conv2d": {"*": {"channels_ratio": ratios, "kernel_size": (), "channel_divisor": ROUND_TO}},
        "nn.BatchNorm2d": norm, "nn.Linear": norm,
    }  # fmt: skip
    for budget in BUDGETS:
        torch.manual_seed(options.seed)
        checkpoint = arena.folder / "fastnas.pth"  # the sensitivities are found once and kept for the other budgets
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                model, _ = mtp.prune(
                    model=copy.deepcopy(arena.workload.model), mode=[("fastnas", rules)], constraints={"flops": f"{budget}%"},
                    dummy_input=arena.inputs[0],
                    config={
                        "data_loader": batches, "collect_func": lambda batch: batch, "checkpoint": str(checkpoint),
                        "score_func": lambda model: score(model, arena.workload, "validation"), "verbose": False,
                    },
                )  # fmt: skip
            except ValueError:  # the budget is out of its search space's reach
                continue
        yield (*arena.candidate(model, f"fastnas{budget}"), model)


PEERS: dict[str, Callable[[Arena, argparse.Namespace], Iterator[tuple[float, float, Path, nn.Module]]]] = {
    "Torch-Pruning uniform": uniform,
    "Torch-Pruning uniform, inner layers": lambda arena, options: uniform(arena, options, inner_layers(arena)),
    "Optuna TPE": tpe,
    "Optuna TPE, inner layers": lambda arena, options: tpe(arena, options, inner_layers(arena)),
    "FastNAS": fastnas,
}  # fmt: skip


FRESH = "hwprune, fresh batch norms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["resnet20", "wide_cnn"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=40, help="of hwprune")
    parser.add_argument("--tpe-trials", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=[*PEERS, "hwprune", FRESH])
    options = parser.parse_args()
    heading("Peers on the same splits and the same latency protocol")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            arena = Arena(getattr(workloads, name)(options.seed), Path(folder))
            fresh_model = refresh_batch_norms(arena.workload).model
            again = " and ".join(f"{score(fresh_model, arena.workload, split):.4f}" for split in ("validation", "test"))
            print(
                f"## {name}: dense {arena.dense_metric:.4f} on validation, {arena.dense_test:.4f} on test; fresh batch norms: {again}\n"
            )
            print("| pruner | seed | G2 | G5 | at 0.5 points | at 1 | at 2 | points | s |")
            print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
            for label, pruner in PEERS.items():
                if label in options.only:
                    start = time.monotonic()
                    points = arena.deliver(list(pruner(arena, options)))
                    print(row(label, options.seed, points, time.monotonic() - start), flush=True)
            if "hwprune" in options.only:
                points, spent = search(ROOT, name, options.seed, ["--trials", str(options.trials)], Path(folder) / "run")
                print(row("hwprune", options.seed, points, spent), flush=True)
            if FRESH in options.only and hasattr(workloads, f"{name}_fresh"):
                again = getattr(workloads, f"{name}_fresh")(options.seed)
                gain = score(again.model, again, "test") - arena.dense_test
                words = ["--trials", str(options.trials)]
                points, spent = search(ROOT, f"{name}_fresh", options.seed, words, Path(folder) / "fresh")
                points = [(drop - gain, speedup) for drop, speedup in points]
                print(row(FRESH, options.seed, points, spent), flush=True)
            print()


if __name__ == "__main__":
    main()
