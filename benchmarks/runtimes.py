"""All runtimes beside each other: which sizes are fast on which, what each refuses, and one front for several.

    python benchmarks/runtimes.py --only stairs,gate,parity     # make bench-runtimes
    python benchmarks/runtimes.py --only fleet --trials 40

``stairs``: six 3x3 convolutions at 32x32 by width: whole models against dense (paired), beside what the probe's pieces say, and the
channel multiple that it finds. ``gate``: the dense model against copies of itself. ``parity``: real models through each runtime's
own converter, or why not. ``fleet``: a search for three runtimes at once against a search for each.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, heading, hwprune
from torch import nn

from hwprune import runtimes
from hwprune.errors import CandidateFailure
from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import LatencyTable, save_inputs
from hwprune.latency.paired import Settings
from hwprune.latency.predictor import LatencyModel
from hwprune.latency.source import Measured
from hwprune.latency.splitting import split
from hwprune.onnx_files import to_onnx
from hwprune.probe.staircase import detected_multiple
from hwprune.records import target as targets
from hwprune.runtimes import RuntimeSettings, conversion
from hwprune.workload import demos

PROFILES = ("cpu", "cpu-openvino", "ncnn", "mnn", "litert", "executorch", "tract", "browser")
WIDTHS = (64, 48, 41, 32)
WINDOW = range(24, 65)


def convolutions(width: int) -> nn.Sequential:
    """Six convolutions of one width, with everything that follows them in a classifier."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number in range(6):
        layers += [nn.Conv2d(3 if number == 0 else width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def here(profile: str) -> targets.Target | None:
    target = targets.load(profile)
    if reason := runtimes.missing(target.runtime):
        print(f"{profile}: {reason}")
        return None
    return target


def stairs(names: list[str]) -> None:
    shape = (1, 3, 32, 32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {width: to_onnx.to_onnx(convolutions(width), (torch.zeros(shape),), folder / f"{width}.onnx") for width in WINDOW}
        example = folder / "example.npz"
        save_inputs(example, [np.random.default_rng(0).standard_normal(shape).astype(np.float32)])
        print("ms by width; x: speedup over 64 with its interval; pieces: what the sum of the probe's pieces says")
        for profile in names:
            if (target := here(profile)) is None:
                continue
            with Bench(target, shapes=[shape]) as bench:
                _stairs_of(target, bench, files, example, shape)


def _stairs_of(target: targets.Target, bench: Bench, files: dict[int, Path], example: Path, shape: tuple[int, ...]) -> None:
    import onnx

    settings = Settings(clock=bench.clock, half_width=0.004, limit_s=4.0)
    bench.load("dense", files[64], keep=True)
    whole = {}
    for width in WIDTHS[1:]:
        bench.load("candidate", files[width])
        whole[width] = bench.pair("candidate", "dense", example, settings)
    table = LatencyTable(bench.identity())
    pieces = {width: split(onnx.load(str(path)), [shape]) for width, path in files.items()}
    table.fill(bench, [segment for segments in pieces.values() for segment in segments], rounds=21)
    model = LatencyModel(table, "")
    summed = {width: sum(model.segment(segment)[0] for segment in segments) for width, segments in pieces.items()}
    dense_s = whole[WIDTHS[1]].dense_latency_s
    cells = [f"{1e3 * dense_s:7.3f}"]
    for width in WIDTHS[1:]:
        speedup = whole[width].speedup
        cells.append(
            f"{1e3 * dense_s / speedup.value:7.3f} ({speedup.value:.2f}x [{speedup.ci_low:.2f}, {speedup.ci_high:.2f}], "
            f"pieces {summed[64] / summed[width]:.2f}x)"
        )
    print(f"{target.name:13s} {'  '.join(cells)}  multiple {detected_multiple(summed)}", flush=True)


def gate(names: list[str]) -> None:
    shape = (1, 3, 32, 32)
    with tempfile.TemporaryDirectory() as name:
        path = to_onnx.to_onnx(convolutions(48), (torch.zeros(shape),), Path(name) / "model.onnx")
        example = Path(name) / "example.npz"
        save_inputs(example, [np.zeros(shape, np.float32)])
        for profile in names:
            if (target := here(profile)) is None:
                continue
            with Bench(target, shapes=[shape]) as bench:
                bench.load("dense", path, keep=True)
                found = Measured(bench, example, Settings(clock=bench.clock)).dense(path)
            one = found.speedup
            print(
                f"{profile:13s} dense against copies {one.value:.4f} [{one.ci_low:.4f}, {one.ci_high:.4f}], between sessions "
                f"{100 * one.conditions['session_sd']:.2f} %: {'passed' if found.passed else 'NOT passed'}",
                flush=True,
            )


class Inverted(nn.Module):
    """The block of MobileNetV3: expand, depthwise, squeeze and excite, project."""

    def __init__(self, inner: int, middle: int, outer: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(inner, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.Hardswish())
        self.depth = nn.Sequential(
            nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False), nn.BatchNorm2d(middle), nn.Hardswish()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(middle, middle // 4, 1),
            nn.ReLU(),
            nn.Conv2d(middle // 4, middle, 1),
            nn.Hardsigmoid(),
        )
        self.project = nn.Sequential(nn.Conv2d(middle, outer, 1, bias=False), nn.BatchNorm2d(outer))
        self.same = inner == outer and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depth(self.expand(x))
        y = self.project(y * self.squeeze(y))
        return x + y if self.same else y


def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    body = [Inverted(16, 32, 16, 1), Inverted(16, 64, 24, 2), Inverted(24, 96, 24, 1), Inverted(24, 96, 40, 2)]
    stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()]
    model = nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 10))
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
    with torch.no_grad():  # else nothing but the last bias comes out, and any runtime is right
        model(torch.randn(64, 3, 64, 64))
    return model.eval()


def _workload(name: str) -> Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    def build() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        import workloads

        found = getattr(workloads, name)()
        return found.model, found.example_inputs

    return build


def vit() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    found = demos.digits_vit()
    return found.model, found.example_inputs


MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]] = {
    "resnet20": _workload("resnet20"),
    "wide_cnn": _workload("wide_cnn"),
    "mobilenet": lambda: (mobilenet(), (torch.zeros(1, 3, 64, 64),)),
    "vit": vit,
    "minilm": _workload("minilm"),
}


def parity(names: list[str]) -> None:
    """The largest difference from ONNX Runtime, relative to the largest entry; or why the runtime does not run the model."""
    for title, build in MODELS.items():
        try:
            model, inputs = build()
        except Exception as error:  # noqa: BLE001 - data or a package that is not here
            print(f"{title}: not here ({error})")
            continue
        shapes = tuple(tuple(x.shape) for x in inputs)
        with tempfile.TemporaryDirectory() as name:
            path = to_onnx.to_onnx(model.eval(), inputs, Path(name) / "model.onnx")
            made = conversion.convert("onnx", path, shapes)
            given, wanted = conversion.expected(made)
            for profile in names:
                if profile == "cpu" or (target := here(profile)) is None:
                    continue
                began = time.monotonic()
                try:
                    out = runtimes.get(target.runtime).load(path, RuntimeSettings(shapes=shapes)).run(given)
                    worst = max(conversion.difference(a, b) for a, b in zip(out, wanted, strict=True))
                    text = f"differs by {worst:.1e}"
                except Exception as error:  # noqa: BLE001 - each library has its own
                    text = f"REFUSED: {str(error).splitlines()[0][:200]}"
                print(f"{title:10s} {profile:13s} {text} ({time.monotonic() - began:.1f} s)", flush=True)


def fleet(names: list[str], trials: int, out: Path, source: str) -> None:
    """A search for each target and one for all; every front is then measured on every target (`hwprune rerank`)."""
    rows = []
    for searched in [*names, ",".join(names)]:
        run = out / searched.replace(",", "+")
        if not (run / "front.csv").is_file():
            hwprune("search", source, "--target", searched, "--trials", str(trials), "--seed", "0", "--max-drop", "0.01",
                    "--out", str(run))  # fmt: skip
        record = json.loads((run / "record.json").read_text())
        chosen = _chosen(record)
        if chosen is None:
            print(f"searched for {searched}: no point within one point of accuracy")
            continue
        speedups = {}
        for name in names:
            where = run / f"rerank-{name}"
            hwprune("rerank", str(run), "--target", name, "--out", str(where))
            points = json.loads((where / "rerank.json").read_text())["points"]
            speedups[name] = next(p["speedup"] for p in points if p["trial"] == chosen["trial"])
        rows.append((searched, chosen, speedups))
    for searched, chosen, speedups in rows:
        told = "  ".join(f"{name} {s['value']:.2f}x [{s['ci_low']:.2f}, {s['ci_high']:.2f}]" for name, s in speedups.items())
        worst = min(s["value"] for s in speedups.values())
        mean = math.exp(sum(math.log(s["value"]) for s in speedups.values()) / len(speedups))
        print(f"searched for {searched}: trial {chosen['trial']}, drop {100 * chosen['drop']:.1f} points; {told}; "
              f"worst {worst:.2f}x, mean {mean:.2f}x", flush=True)  # fmt: skip


def _chosen(record: dict[str, Any]) -> dict[str, Any] | None:
    """The fastest point that validation holds to be within one point, as the command recommends it."""
    fits = [p for p in record["front"] if p.get("told_high", p["drop"]) <= 0.01]
    return max(fits, key=lambda p: p["speedup"]["value"]) if fits else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="stairs,gate,parity")
    parser.add_argument("--targets", default=",".join(PROFILES))
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--workload", default=str(ROOT / "benchmarks/workloads.py:wide_cnn"))
    parser.add_argument("--out", type=Path, default=ROOT / "runs/fleet")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    heading("Runtimes")
    print(", ".join(runtimes.get(targets.load(name).runtime).version() for name in options.targets.split(",")))
    for part in options.only.split(","):
        print(f"\n## {part}")
        if part == "fleet":
            fleet(options.targets.split(","), options.trials, options.out, options.workload)
        else:
            try:
                {"stairs": stairs, "gate": gate, "parity": parity}[part](options.targets.split(","))
            except CandidateFailure as failure:
                print(f"stopped: {failure}")


if __name__ == "__main__":
    main()
