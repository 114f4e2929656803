"""Fewer tokens: what each form brings on each runtime, whether NVIDIA's builder takes it, and fronts with and without it.

    python benchmarks/tokens.py forms [--targets cpu,cpu-openvino] [--gone 13]
    python benchmarks/tokens.py builds [--targets a100,l4]
    python benchmarks/tokens.py predictions
    python benchmarks/tokens.py fronts [digits-vit minilm] [--targets cpu,cpu-openvino] [--trials 16] [--seed 0] [--keep FOLDER]

``forms`` measures a vision transformer of DeiT-Ti's sizes (12 blocks, 192 features, 3 heads, 196 tokens and a class token, random
weights) in which so many tokens go after each attention, with the largest difference of the file's outputs from PyTorch's.
``predictions`` compares what is predicted of the divergence with what it is, on the demo's vision transformer. ``fronts`` runs each search twice, with the same seed and number of trials: with the space `tokens`, and with the same space without
tokens; what one search has computed of the weights is kept for the others. Drops are those on the test split, speedups those of six
fresh processes; MiniLM needs what workloads.py says.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import ROOT, heading
from delivered import DEMOS, front, geometric_mean
from torch import nn

from hwprune import patterns
from hwprune.calibration.gradients import TEMPERATURE
from hwprune.deploy.build_check import ToBuild, check_builds
from hwprune.errors import CandidateFailure
from hwprune.latency import fresh
from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import save_inputs
from hwprune.onnx_files.template import Template
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.runtimes import tensorrt_rtx
from hwprune.structure.torch.analyse import trace
from hwprune.structure.torch.graph import AxisGraph
from hwprune.workload import demos
from hwprune.workload.demos import AttentionBlock

FORMS = ("token", "merge")
SPACE = ROOT / "search_spaces" / "tokens.toml"


class Vision(nn.Module):
    """DeiT-Ti's sizes."""

    def __init__(self, blocks: int = 12, width: int = 192, heads: int = 3, patches: int = 14) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, patches**2 + 1, width))
        self.blocks = nn.Sequential(*(AttentionBlock(width, heads, 4 * width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        y: torch.Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return y


def traced() -> tuple[AxisGraph, Template, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    graph = trace(Vision().eval(), (x,))
    return graph, Template(graph, (x,)), x


def fewer(graph: AxisGraph, form: str, gone: int) -> dict[str, torch.Tensor]:
    """So many tokens go at every place: a share that falls with those that are left."""
    left, keeps = None, {}
    for axis in graph.token_axes:
        if axis.form == form:
            left = axis.size if left is None else left
            keeps[axis.name] = torch.arange(axis.size) < round(axis.size * (left - gone) / left)
            left -= gone
    return keeps


def files(folder: Path, gone: int) -> tuple[dict[str, Path], dict[str, float], torch.Tensor]:
    """Form -> its file, and the largest difference of its outputs from PyTorch's, relative to the largest output."""
    import onnxruntime

    graph, template, x = traced()
    made, differences = {}, {}
    for form in ("dense", *FORMS):
        keeps = fewer(graph, form, gone)
        module = graph.cut(keeps)
        made[form] = folder / f"{form}.onnx"
        assert template.write(module, keeps, made[form])
        session = onnxruntime.InferenceSession(made[form])
        out = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        with torch.no_grad():
            wanted = module(x).numpy()
        differences[form] = float(np.abs(out - wanted).max() / np.abs(wanted).max())
    return made, differences, x


def show_forms(names: list[str], gone: int) -> None:
    heading(f"Fewer tokens: {gone} of 196 go after each of 12 attentions")
    print("| target | form | speedup | difference from PyTorch |\n| --- | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        made, differences, x = files(folder, gone)
        example = folder / "example.npz"
        save_inputs(example, [x.numpy()])
        for name in names:
            chosen = targets.load(name)
            try:
                candidates = {form: made[form] for form in FORMS}
                measured = fresh.remeasure(
                    candidates, made["dense"], example, lambda chosen=chosen: Bench(chosen, shapes=[x.shape])
                )
            except CandidateFailure as failure:
                print(f"| {name} | | {failure.reason[:80]} | |", flush=True)
                continue
            for form in FORMS:
                _, speed = measured[form]
                cell = f"{speed.value:.2f}x [{speed.ci_low:.2f}, {speed.ci_high:.2f}]"
                print(f"| {name} | {form} | {cell} | {differences[form]:.1e} |", flush=True)


def show_builds(names: list[str], gone: int) -> None:
    heading("Fewer tokens through NVIDIA's builder")
    print(f"{tensorrt_rtx.version()}\n\n| target | dense | token | merge |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as text:
        made, _, x = files(Path(text), gone)
        for name in names:
            asked = targets.Target.from_json({**targets.load(name).to_json(), "precision": "fp32"})
            built = check_builds([ToBuild(form, path, [list(x.shape)]) for form, path in made.items()], asked)
            cells = ["builds" if one.builds else one.reason[:60] for one in built.values()]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


@torch.no_grad()
def true_divergence(pruner: Pruner, module: torch.nn.Module) -> float:
    """KL of outputs at the temperature of the prediction, times its square: mean over the calibration data."""
    total, count = 0.0, 0
    for inputs, _ in pruner.workload.batches("calibration"):
        dense, now = ((m(*inputs) / TEMPERATURE).log_softmax(dim=1) for m in (pruner.graph.module, module))
        total += float((dense.exp() * (dense - now)).sum()) * TEMPERATURE**2
        count += len(dense)
    return total / count


def show_predictions() -> None:
    heading("Fewer tokens: predicted and true divergence from the dense model")
    pruner = Pruner(demos.digits_vit())
    units = [unit for unit in pruner.units.values() if unit.tokens is not None]
    wanted = {
        (unit.name, unit.role, patterns.TOKENS[unit.role]): [
            n / 16 for n in ((1, 2, 4, 6, 8, 12) if unit.role == "token" else (1, 2, 4, 6, 8))
        ]
        for unit in units
    }
    rows = pruner.responses(wanted, [], "none")
    print("| place | form | gone | predicted | true |\n| --- | --- | ---: | ---: | ---: |")
    told: dict[str, list[tuple[float, float]]] = {form: [] for form in FORMS}
    for (name, form, method), levels in wanted.items():
        for place, level in enumerate(levels):
            candidate = pruner.prune(Recipe((UnitChoice(name, form, level, method),)))
            pair = (float(rows[name, form, method][:, place].square().mean()) / 2, true_divergence(pruner, candidate.module))
            told[form].append(pair)
            print(f"| {pruner.units[name].tokens.label} | {form} | {level:.0%} | {pair[0]:.4f} | {pair[1]:.4f} |")  # type: ignore[union-attr]
    for form, pairs in told.items():
        first, second = np.array(pairs).T
        order = np.corrcoef(first.argsort().argsort(), second.argsort().argsort())[0, 1]
        ratio = first / second
        print(
            f"\n{form}: rank correlation {order:.3f}; predicted / true from {ratio.min():.2f} to {ratio.max():.2f}, median {np.median(ratio):.2f}"
        )


def search(name: str, words: list[str], out: Path) -> None:
    """One search; raises `subprocess.CalledProcessError`."""
    source = f"demo:{name}" if name in DEMOS else f"{ROOT / 'benchmarks' / 'workloads.py'}:{name}"
    command = [sys.executable, "-c", "from hwprune.cli.main import main; main()", "search", source, *words, "--out", str(out)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(out.parent / "cache")}
    with out.with_name(out.name + ".log").open("w") as log:
        subprocess.run(command, env=environment, cwd=ROOT, stdout=log, stderr=log, check=True)


def show_fronts(names: list[str], asked: list[str], trials: int, seed: int, keep: Path | None) -> None:
    heading(f"Fronts with and without fewer tokens: {trials} trials, seed {seed}")
    print("| network | target | tokens | G2 | G5 | <= 0.5 points | <= 1 | <= 2 | points | with fewer tokens | seconds |")
    print(f"| --- | --- | --- |{' ---: |' * 8}")
    with tempfile.TemporaryDirectory() as text:
        folder = keep or Path(text)
        folder.mkdir(parents=True, exist_ok=True)
        without = folder / "without.toml"
        without.write_text(SPACE.read_text().replace(', "token", "merge"', ""))
        for name in names:
            for target in asked:
                for label, space in (("yes", SPACE), ("no", without)):
                    out = folder / f"{name}-{target}-{label}"
                    words = ["--space", str(space), "--target", target, "--trials", str(trials), "--seed", str(seed)]
                    began = time.monotonic()
                    search(name, words, out)
                    points, spent = front(out), time.monotonic() - began
                    at = [max((s for d, s in points if d <= limit + 1e-12), default=1.0) for limit in (0.005, 0.01, 0.02)]
                    numbers = (geometric_mean(points, 0.02), geometric_mean(points, 0.05), *at)
                    used = sum(
                        any(f'"{form}"' in path.read_text() for form in FORMS) for path in out.glob("candidates/*/recipe.json")
                    )
                    cells = " | ".join(f"{number:.2f}" for number in numbers)
                    print(f"| {name} | {target} | {label} | {cells} | {len(points)} | {used} | {spent:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["forms", "builds", "predictions", "fronts"])
    parser.add_argument("names", nargs="*", default=["digits-vit", "minilm"])
    parser.add_argument("--targets")
    parser.add_argument("--gone", type=int, default=13)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    if options.what == "builds":
        show_builds((options.targets or "a100,l4").split(","), options.gone)
        return
    if options.what == "predictions":
        show_predictions()
        return
    asked = (options.targets or "cpu,cpu-openvino").split(",")
    if options.what == "forms":
        show_forms(asked, options.gone)
    else:
        show_fronts(options.names, asked, options.trials, options.seed, options.keep)


if __name__ == "__main__":
    main()
