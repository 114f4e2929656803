"""Cut versions of a model and their segments; which indices are kept does not change the time."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch

from hwprune.latency.predictor import LatencyModel
from hwprune.latency.segments import Segment
from hwprune.latency.splitting import split
from hwprune.layers.units import Unit
from hwprune.onnx_files import to_onnx
from hwprune.pruning.pruner import Pruner

POINTS = 16
"""Keep counts of a unit's staircase."""


class CutSegments:
    """The segments of cut versions of a model."""

    def __init__(self, pruner: Pruner, precision: str = "fp32") -> None:
        """``precision``: of the file that the target's runtime takes."""
        self.pruner, self.precision = pruner, precision
        self.shapes = [tuple(x.shape) for x in pruner.workload.example_inputs]

    def model(self, keeps: Mapping[str, torch.Tensor], drop: Sequence[str] = ()) -> onnx.ModelProto:
        """The ONNX model of a cut. Raises `CandidateFailure`."""
        module = self.pruner.graph.cut(keeps, drop)
        model = self.pruner.template.model(module, keeps, drop)
        if model is None:
            with tempfile.TemporaryDirectory() as folder:
                path = to_onnx.to_onnx(module, self.pruner.workload.example_inputs, Path(folder) / "model.onnx")
                model = onnx.load(str(path))
        return model if self.precision == "fp32" else to_onnx.converted(model, self.precision)

    def cut(self, counts: Mapping[str, int], drop: Sequence[str] = ()) -> onnx.ModelProto:
        """The first so many indices of axes are kept; which ones does not change the time."""
        keeps = {}
        for name, count in counts.items():
            keeps[name] = torch.arange(self.pruner.units[name].size) < count
        return self.model(keeps, drop)

    def segments(self, model: onnx.ModelProto) -> list[Segment]:
        return split(model, self.shapes)

    def axes(self) -> list[Unit]:
        return [unit for unit in self.pruner.units.values() if unit.axis is not None and unit.size > 1]

    def tokens(self) -> list[Unit]:
        """The places where tokens can be made fewer."""
        return [unit for unit in self.pruner.units.values() if unit.tokens is not None]

    def step(self, unit: Unit, size: int) -> int:
        """Whole heads and groups; of channels at least a quarter of what a kernel's block may be."""
        if unit.role in ("head", "group", "expert") or size <= 16:
            return 1
        return 4 if size <= 128 else 8


def random_counts(axes: Sequence[Unit], pieces: CutSegments, multiple: int, seed: int) -> dict[str, int]:
    """Keep counts around a common level, in steps of the multiple: what a search proposes."""
    draw = random.Random(seed)
    level = draw.uniform(0.2, 1.0)
    counts = {}
    for unit in axes:
        step = pieces.step(unit, unit.size) if unit.size < 2 * multiple else multiple
        kept = min(unit.size, max(step, round(draw.gauss(level, 0.25) * unit.size / step) * step))
        if kept < unit.size:
            counts[unit.name] = kept
    return counts


def touched(pieces: Mapping[int, Sequence[Segment]]) -> set[str]:
    """Names of a unit's segments: those that a cut changes. The largest count is the dense model.

    By name, because a signature may be that of another layer, too; segments keep their names through a cut.
    """
    dense = {segment.name: segment.signature for segment in pieces[max(pieces)]}
    return {s.name for segments in pieces.values() for s in segments if s.signature != dense.get(s.name)}


def staircase_of(pieces: Mapping[int, Sequence[Segment]], model: LatencyModel) -> dict[int, float]:
    """Seconds of a unit's segments by keep count."""
    mine = touched(pieces)
    return {count: sum(model.segment(s)[0] for s in segments if s.name in mine) for count, segments in pieces.items()}
