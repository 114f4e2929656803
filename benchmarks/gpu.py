"""Everything that needs a GPU, in one go of at most twelve minutes: tests, runtimes, 2:4, roofline, energy.

    make gpu                                          # python benchmarks/gpu.py --out runs/gpu.md
    python benchmarks/gpu.py --profile cpu --only runtimes,energy     # the same code on a CPU, to see that it runs

The card is found by its name among the profiles; a card without one is measured by the profile that `--profile` names. Every part
has a limit of its own and is told as a row, also where it fails, so that one part's fault costs no other's numbers.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from common import ROOT
from torch import nn

from hwprune import runtimes
from hwprune.latency import fingerprint
from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import save_inputs
from hwprune.latency.paired import Settings
from hwprune.latency.roofline import Roofline
from hwprune.latency.source import Measured
from hwprune.latency.splitting import split
from hwprune.onnx_files import to_onnx
from hwprune.records import target as targets
from hwprune.records.target import Target
from hwprune.searching.recording import versions

TESTS_S, TOTAL_S = 270.0, 720.0
BATCH, SIZE = 16, 64
WIDTHS = (128, 96, 64, 32)
Row = list[str]


def network(width: int) -> nn.Sequential:
    """Eight convolutions, wide enough to fill a card."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number in range(8):
        layers += [nn.Conv2d(3 if number == 0 else width, width, 3, 2 if number in (2, 5) else 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 100)).eval()


def products(*, sparse: bool) -> nn.Sequential:
    """Products whose weights are 2:4, or dense."""
    torch.manual_seed(0)
    layers = [nn.Linear(4096, 4096, bias=False), nn.ReLU(), nn.Linear(4096, 4096, bias=False)]
    if sparse:
        with torch.no_grad():
            for layer in (layers[0], layers[2]):
                layer.weight.view(-1, 4)[:, 2:] = 0
    return nn.Sequential(*layers).eval()


def variants(base: Target) -> Iterator[tuple[str, Target]]:
    """The runtimes of the base's device, in its precision where they have it."""
    if base.device == "cpu":
        yield base.runtime, base
        return
    ways: list[tuple[str, str, dict[str, Any]]] = [("onnxruntime-cuda", "fp32", {}), ("onnxruntime-tensorrt", "fp16", {})]
    ways += [("tensorrt", "fp16", {}), *(("pytorch-cuda", "fp16", {"mode": mode}) for mode in ("eager", "compile", "cuda-graph"))]
    for runtime, precision, options in ways:
        data = {**base.to_json(), "runtime": runtime, "precision": precision, "options": options}
        yield f"{runtime} {options.get('mode', '')} {precision}".strip(), Target.from_json(data)


def write(model: nn.Module, example: torch.Tensor, target: Target, folder: Path) -> Path:
    runtime = runtimes.get(target.runtime)
    folder.mkdir(parents=True, exist_ok=True)
    if runtime.file.endswith(".pt2"):
        to_onnx.to_pt2(model, (example,), folder / runtime.file)
    else:
        to_onnx.to_onnx(model, (example,), folder / runtime.file)
        if runtime.precision_of_file(target.precision) != "fp32":
            to_onnx.convert(folder / runtime.file, runtime.precision_of_file(target.precision))
    return folder / runtime.file


def paired(bench: Bench, candidate: Path, example: Path) -> Any:
    bench.load("candidate", candidate)
    return bench.pair("candidate", "dense", example, Settings(clock=bench.clock, half_width=0.005, limit_s=2.0))


def tests(_: Target, __: Path) -> Iterator[Row]:
    """The tests that are marked for a GPU or TensorRT."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu or tensorrt", "--timeout", "120", "tests"],
        cwd=ROOT, capture_output=True, text=True, timeout=TESTS_S, check=False,
    )  # fmt: skip
    yield ["result"]
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")) or " passed" in line or " failed" in line or " skipped" in line:
            yield [line.strip("= ")]


def compare_runtimes(base: Target, folder: Path) -> Iterator[Row]:
    """Dense latency, A/A gate and the speedup of half the channels, on every runtime."""
    yield ["runtime", "dense ms", "dense against copies", "half the channels", "kernels"]
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    example = folder / "x.npz"
    save_inputs(example, [x.numpy()])
    for name, target in variants(base):
        if reason := runtimes.get(target.runtime).missing():
            yield [name, f"not here: {reason}"]
            continue
        try:
            dense, half = (write(network(width), x, target, folder / f"{name}-{width}") for width in (128, 64))
            with Bench(target, shapes=[tuple(x.shape)]) as bench:
                bench.load("dense", dense, keep=True)
                gate = Measured(bench, example, Settings(clock=bench.clock)).dense(dense)
                found = paired(bench, half, example).speedup
                facts = str(bench.facts("dense"))[:80]
            one = gate.speedup
            yield [
                name, f"{1e3 * gate.dense_latency_s:.3f}", f"{one.value:.3f} [{one.ci_low:.3f}, {one.ci_high:.3f}]",
                f"{found.value:.2f}x [{found.ci_low:.2f}, {found.ci_high:.2f}]", facts,
            ]  # fmt: skip
        except Exception as error:  # noqa: BLE001 - a row of the table
            yield [name, f"failed: {str(error).splitlines()[0][:160]}"]


def two_four(base: Target, folder: Path) -> Iterator[Row]:
    """2:4 weights against dense ones of the same shape."""
    yield ["runtime", "2:4 over dense", "what ran sparse"]
    x = torch.randn(512, 4096)
    example = folder / "p.npz"
    save_inputs(example, [x.numpy()])
    for name, target in variants(base):
        if "tensorrt" not in target.runtime and target.options.get("mode") != "eager":
            continue
        try:
            ours = target
            if target.runtime == "pytorch-cuda":
                ours = Target.from_json({**target.to_json(), "options": {"mode": "eager", "semi_structured": True}})
            dense, sparse = (write(products(sparse=s), x, target, folder / f"{name}-p{s}") for s in (False, True))
            with Bench(ours, shapes=[tuple(x.shape)]) as bench:
                bench.load("dense", dense, keep=True)
                found = paired(bench, sparse, example).speedup
                facts = str(bench.facts("candidate"))[:160]
            yield [name, f"{found.value:.2f}x [{found.ci_low:.2f}, {found.ci_high:.2f}]", facts]
        except Exception as error:  # noqa: BLE001 - a row of the table
            yield [name, f"failed: {str(error).splitlines()[0][:160]}"]


def roofline(base: Target, folder: Path) -> Iterator[Row]:
    """Speedups that the data sheet predicts, and measured ones."""
    yield ["channels", "estimated", "measured", "error"]
    known = Roofline(base)
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    example, shapes = folder / "r.npz", [tuple(x.shape)]
    save_inputs(example, [x.numpy()])
    files = {width: write(network(width), x, base, folder / f"r{width}") for width in WIDTHS}
    seconds = {}
    for width, path in files.items():
        model = onnx.load(str(path))
        seconds[width] = known.seconds(split(model, shapes), {})
    with Bench(base, shapes=shapes) as bench:
        bench.load("dense", files[WIDTHS[0]], keep=True)
        for width in WIDTHS[1:]:
            found = paired(bench, files[width], example).speedup
            estimated = seconds[WIDTHS[0]] / seconds[width]
            error = 100 * (estimated / found.value - 1)
            yield [
                str(width), f"{estimated:.2f}x", f"{found.value:.2f}x [{found.ci_low:.2f}, {found.ci_high:.2f}]", f"{error:+.0f} %",
            ]  # fmt: skip


def energy(base: Target, folder: Path) -> Iterator[Row]:
    """Joules of one run by the device's own counter."""
    yield ["channels", "joules of a batch"]
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    save_inputs(folder / "e.npz", [x.numpy()])
    for width in WIDTHS[::2]:
        with Bench(base, shapes=[tuple(x.shape)]) as bench:
            bench.load("model", write(network(width), x, base, folder / f"e{width}"))
            joules = bench.energy("model", folder / "e.npz")
        yield [str(width), "no counter" if joules is None else f"{joules:.4g}"]


PARTS: dict[str, Callable[[Target, Path], Iterator[Row]]] = {
    "tests": tests, "runtimes": compare_runtimes, "two_four": two_four, "roofline": roofline, "energy": energy,
}  # fmt: skip


def card(profile: str) -> Target:
    """The profile of the card that is here. Exits where there is none."""
    if profile:
        return targets.load(profile)
    name = fingerprint.gpu_name()
    if name is None:
        sys.exit("no NVIDIA GPU is here; --profile names a profile to measure by, such as cpu, to see that the code runs")
    for known in targets.names():
        target = targets.load(known)
        if target.device == "cuda" and target.device_match and target.matches(name):
            return target
    sys.exit(f"no profile describes {name!r}: name the nearest with --profile (hwprune targets)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--profile", "--targets", default="", help="the profile to measure by (default: by the card's name)")
    parser.add_argument("--out", type=Path, help="write the tables here, as Markdown")
    options = parser.parse_args()
    base = card(options.profile)
    np.random.seed(0)
    torch.manual_seed(0)
    found = versions()
    device = (fingerprint.gpu_name() if base.device == "cuda" else None) or fingerprint.device_name()
    lines = [
        "# On a GPU",
        "",
        f"`make gpu`, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}; {device}, profile {base.name}; "
        + ", ".join(
            f"{name} {found[name]}" for name in ("hwprune", "python", "torch", "onnxruntime", "tensorrt") if name in found
        )
        + "; seed 0.",
    ]
    print("\n".join(lines), flush=True)
    began = time.monotonic()
    for part in options.only.split(","):
        said = [f"\n## {part}", (PARTS[part].__doc__ or "").strip(), ""]
        if time.monotonic() - began > TOTAL_S:
            said.append("Not run: the twelve minutes were over.")
        else:
            said += _table(PARTS[part], base)
        lines += said
        print("\n".join(said), flush=True)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{time.monotonic() - began:.0f} s")


def _table(part: Callable[[Target, Path], Iterator[Row]], base: Target) -> list[str]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        try:
            rows.extend(part(base, Path(name)))
        except Exception as error:  # noqa: BLE001 - the other parts go on
            traceback.print_exc()
            rows.append([f"failed: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"])
    width = max((len(row) for row in rows), default=1)
    cells = ["| " + " | ".join([*row, *[""] * (width - len(row))]) + " |" for row in rows]
    return [cells[0], "|" + " --- |" * width, *cells[1:]] if cells else ["nothing"]


if __name__ == "__main__":
    main()
