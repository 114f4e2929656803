"""Time of tracing, analysis and cutting, and the largest difference between cut and masked.

python benchmarks/structure.py
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from common import ROOT, heading

import hwprune
from hwprune import demos
from hwprune.structure.graph import AxisGraph

sys.path.insert(0, str(ROOT / "examples"))


def main() -> None:
    heading("structure")
    from cifar_resnet20 import ResNet20

    models = {
        "digits CNN": (demos.DigitsNet(), torch.randn(1, 1, 16, 16)),
        "digits transformer": (demos.DigitsTransformer(), torch.randn(1, 1, 16, 16)),
        "ResNet-20": (ResNet20(), torch.randn(1, 3, 32, 32)),
        "torch encoder, 6 layers": (
            torch.nn.TransformerEncoder(
                torch.nn.TransformerEncoderLayer(128, 8, 512, batch_first=True), 6, enable_nested_tensor=False
            ),
            torch.randn(1, 16, 128),
        ),
    }
    print("| model | nodes | axes that can be cut | trace | cut, median of 20 | cut against masked |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (model, x) in models.items():
        start = time.perf_counter()
        graph = hwprune.trace(model.eval(), (x,))
        traced = time.perf_counter() - start
        row(name, graph, x, traced)


def row(name: str, graph: AxisGraph, x: torch.Tensor, traced: float) -> None:
    generator = torch.Generator().manual_seed(0)
    free = [axis for axis in graph.axes if axis.frozen is None and axis.exact]
    keeps = {}
    for axis in free:
        keeps[axis.name] = torch.rand(axis.size, generator=generator) < 0.5
        keeps[axis.name][0] = True
    times = []
    for _ in range(20):
        start = time.perf_counter()
        small = graph.cut(keeps)
        times.append(time.perf_counter() - start)
    x = torch.randn(4, *x.shape[1:], generator=generator)
    with torch.no_grad():
        a, b = small(x), graph.mask(keeps)(x)
    difference = float((a - b).abs().max() / b.abs().max())
    nodes = len(list(graph.module.graph.nodes))
    print(f"| {name} | {nodes} | {len(free)} | {traced:.2f} s | {1000 * statistics.median(times):.1f} ms | {difference:.1e} |")


if __name__ == "__main__":
    main()
