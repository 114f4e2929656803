"""How far a speedup can be trusted on this machine: the dense digits model against itself.

    python benchmarks/latency.py [--runs 40]

Each run is a new process with two sessions of the same file; the truth is 1. Paired intervals are compared with
unpaired medians and with wall time of the same run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from common import heading

from hwprune import demos, evaluate, export
from hwprune import target as targets
from hwprune.latency import fresh
from hwprune.latency.bench import Bench
from hwprune.structure.tracing import trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()
    heading(f"the dense model against itself, {options.runs} processes")
    workload = demos.get("digits")
    target = targets.load("cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export.to_onnx(trace(workload.model, workload.example_inputs).module, workload.example_inputs, folder / "model.onnx")
        evaluate.write_samples(workload, "validation", folder / "all.npz")
        one_example(folder)
        results = []
        for _ in range(options.runs):
            with Bench(target) as bench:
                bench.load("a", folder / "model.onnx")
                bench.load("b", folder / "model.onnx")
                results.append(bench.pair("a", "b", folder / "one.npz", fresh.settings_for(target)))
    inside = sum(r["ci_low"] <= 1 <= r["ci_high"] for r in results)
    print(f"intervals of one process that hold 1: {inside} of {len(results)} (they leave out what differs between processes)")
    sixes = [results[i : i + 6] for i in range(0, len(results) - 5, 6)]
    held = sum(min(r["speedup"] for r in six) <= 1 <= max(r["speedup"] for r in six) for six in sixes)
    print(f"intervals over 6 processes, as in front.csv, that hold 1: {held} of {len(sixes)}")
    for text, values in (
        ("paired, CPU time", [r["speedup"] for r in results]),
        ("paired, wall time", [r["wall_speedup"] for r in results]),
        ("unpaired: one process's median over the next one's", unpaired([r["latency_s"] for r in results])),
    ):
        spread = [abs(value - 1) for value in values]
        print(f"{text}: median error {100 * statistics.median(spread):.2f} %, largest {100 * max(spread):.2f} %")
    print(f"contended quads: {100 * statistics.mean(r['contended'] for r in results):.0f} %")


def unpaired(latencies: list[float]) -> list[float]:
    return [a / b for a, b in zip(latencies[::2], latencies[1::2], strict=False)]


def one_example(folder: Path) -> None:
    import numpy as np

    with np.load(folder / "all.npz") as stored:
        np.savez(folder / "one.npz", **{"00000.input0": stored["00000.input0"][:1]})


if __name__ == "__main__":
    main()
