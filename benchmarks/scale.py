"""Scale and speed of the axis engine: a Llama-3-8B without weights, cuts of ResNet-50, candidates' ONNX files of ResNet-56.

python benchmarks/scale.py        (in the zoo's environment: .venv-zoo/bin/python)
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import zoo_models
from common import ROOT, heading
from torch import nn
from torch.nn import functional as F

import hwprune
from hwprune.latency.bench import Bench
from hwprune.latency.paired import Settings
from hwprune.onnx_files import to_onnx
from hwprune.onnx_files.template import Template
from hwprune.records import target as targets
from hwprune.structure.torch import analyse, capture

sys.path.insert(0, str(ROOT / "examples"))


class ResNet56(nn.Module):
    """For CIFAR, option A shortcuts (He et al. 2016, section 4.2), n = 9."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.Linear(64, 10)
        blocks, before = [], 16
        for width in (16, 32, 64):
            for number in range(9):
                blocks.append(Block(before, width, 2 if number == 0 and width > 16 else 1))
                before = width
        self.body = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(F.relu(self.bn(self.conv(x)))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.stride, self.extra = stride, (after - before) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(x + y)


def llama() -> None:
    zoo_models.import_torchvision()
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=8192, rope_theta=500000.0,
    )  # fmt: skip
    config.use_cache = False
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    inputs = (torch.zeros(1, 128, dtype=torch.long, device="meta"),)
    start = time.perf_counter()
    captured = capture.capture(model, inputs)
    traced = time.perf_counter()
    graph = analyse.analyse(captured)
    analysed = time.perf_counter()
    free = [axis for axis in graph.axes if axis.frozen is None]
    counts = {axis.name: axis.size // 2 for axis in free}
    parameters = graph.parameter_count(counts)
    predicted = time.perf_counter()
    small = graph.cut({axis.name: torch.arange(axis.size) % 2 == 0 for axis in free})
    same = sum(p.numel() for p in small.parameters()) == parameters
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"Llama-3-8B shape on meta tensors ({len(captured.graph.nodes)} nodes, {graph.parameter_count({}) / 1e9:.2f} G parameters):"
    )
    print(
        f"trace {traced - start:.1f} s, analysis {analysed - traced:.2f} s, half of {len(free)} axes predicted in {predicted - analysed:.3f} s: "
    )
    print(
        f"{parameters / 1e9:.3f} G parameters (as cut: {same}), {graph.macs(counts) / graph.macs({}):.3f} of the MACs; largest memory {peak:.2f} GB\n"
    )


def median_ms(function: object, times: int = 20) -> str:
    assert callable(function)
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        found.append(1000 * (time.perf_counter() - start))
    return f"{statistics.median(found):.0f} ms (median of {times}, {min(found):.0f} to {max(found):.0f})"


def resnet50() -> None:
    model, inputs = zoo_models.MODELS["torchvision/resnet50"]()
    captured = capture.capture(model, inputs)
    graph = analyse.analyse(captured)
    keeps = {axis.name: torch.arange(axis.size) % 2 == 0 for axis in graph.axes if axis.frozen is None}
    print(
        f"ResNet-50, {len(captured.graph.nodes)} nodes: analysis {median_ms(lambda: analyse.analyse(captured))}, cut of all {len(keeps)} axes {median_ms(lambda: graph.cut(keeps))}\n"
    )


def resnet56() -> None:
    torch.manual_seed(0)
    example = torch.randn(1, 3, 32, 32)
    graph = hwprune.trace(ResNet56().eval(), (example,))
    start = time.perf_counter()
    template = Template(graph, (example,))
    print(f"ResNet-56: dense export and analysis {time.perf_counter() - start:.1f} s", end="; ")
    keeps = {axis.name: torch.arange(axis.size) % 2 == 0 for axis in graph.axes if axis.frozen is None}
    small = graph.cut(keeps)
    with tempfile.TemporaryDirectory() as folder:
        cut, exported, npz = Path(folder) / "cut.onnx", Path(folder) / "exported.onnx", Path(folder) / "example.npz"
        print(f"a candidate's file from the dense one {median_ms(lambda: template.write(small, keeps, cut))}", end="; ")
        start = time.perf_counter()
        to_onnx.to_onnx(small, (example,), exported)
        print(f"exported {time.perf_counter() - start:.1f} s")
        np.savez(npz, **{"00000.input0": example.numpy()})
        with Bench(targets.load("cpu")) as bench:
            bench.load("cut", cut)
            bench.load("exported", exported)
            bench.load("twin", exported)
            for name, other in (("cut", "exported"), ("twin", "exported")):
                paired = bench.pair(name, other, npz, Settings())
                print(f"{name} against {other}: {paired['speedup']:.3f} [{paired['ci_low']:.3f}, {paired['ci_high']:.3f}]")


def main() -> None:
    torch.set_num_threads(1)
    heading("scale")
    llama()
    resnet50()
    resnet56()


if __name__ == "__main__":
    main()
