"""Latency of a device that is not here, estimated from its data sheet. Always called an estimate.

Each segment takes the longer of its arithmetic and its memory traffic, plus the launch of a kernel (Williams et al. 2009).
Arithmetic is quantised as tensor cores and vector units are: a matrix product is cut into tiles, the tiles run in waves over the
multiprocessors, and a last wave that is not full takes as long as a full one (NVIDIA, Matrix Multiplication Background
User's Guide: tile and wave quantization). So 257 columns cost what 384 or 320 do, and small layers don't shrink at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hwprune.errors import UsageError
from hwprune.latency.segments import Segment
from hwprune.records.target import Target

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of one segment: what bounds it is ``compute``, ``memory`` or ``launch``."""

    seconds: float
    compute_s: float
    memory_s: float
    launch_s: float

    @property
    def bound(self) -> str:
        if self.launch_s >= max(self.compute_s, self.memory_s):
            return "launch"
        return "compute" if self.compute_s >= self.memory_s else "memory"


class Roofline:
    """The figures of a profile as a function of segments."""

    def __init__(self, target: Target) -> None:
        """Raises `UsageError` if the profile lacks a figure."""
        figures = {key: value["value"] for key, value in target.roofline.items()}
        needed = (f"{target.precision}_flops", "bandwidth_bytes_per_s", "launch_s", "multiprocessors", "tiles")
        lacking = [name for name in needed if name not in figures]
        if lacking:
            raise UsageError(f"target {target.name} can't be estimated: its profile's [roofline] lacks {', '.join(lacking)}")
        self._flops = float(figures[f"{target.precision}_flops"])
        self._vector_flops = float(figures.get("vector_flops", self._flops))
        self._bandwidth = float(figures["bandwidth_bytes_per_s"])
        self._launch = float(figures["launch_s"])
        self._processors = int(figures["multiprocessors"])
        self._tiles = [tuple(map(int, tile)) for tile in figures["tiles"]]
        self._sparse = float(figures.get("two_four_speedup", 1.0))
        self._item = _BYTES[target.precision]

    def segment(self, segment: Segment, *, two_four: bool = False) -> Estimate:
        """One segment; ``two_four``: its weights are 2:4 and the device has sparse tensor cores."""
        batches, rows, columns, inner = segment.gemm
        compute = 0.0
        if segment.macs:
            grouped = batches > 1 and segment.anchor == "Conv"
            flops = self._vector_flops if grouped else self._flops * (self._sparse if two_four else 1.0)
            if grouped:
                compute = 2 * segment.macs / flops
            else:
                compute = min(self._waves(batches, rows, columns, inner, tile, flops) for tile in self._tiles)
        moved = sum(self._bytes(segment, name) for name in (*segment.inputs, *segment.outputs))
        weights = sum(t.elements * self._item for t in segment.weights) * (
            0.5625 if two_four else 1.0
        )  # values and 2-bit positions
        memory = (moved + weights) / self._bandwidth
        launches = self._launch * (1 if segment.macs or segment.anchor != "light" else 0.5)
        return Estimate(max(compute, memory) + launches, compute, memory, launches)

    def seconds(self, segments: Sequence[Segment], two_four: Mapping[str, bool] | None = None) -> float:
        """A whole model: one kernel after the other."""
        return sum(self.segment(segment, two_four=bool(two_four and two_four.get(segment.name))).seconds for segment in segments)

    def _waves(self, batches: int, rows: int, columns: int, inner: int, tile: tuple[int, ...], flops: float) -> float:
        high, wide, deep = tile
        tiles = batches * math.ceil(rows / high) * math.ceil(columns / wide)
        waves = math.ceil(tiles / self._processors)
        return waves * 2 * high * wide * math.ceil(inner / deep) * deep / (flops / self._processors)

    def _bytes(self, segment: Segment, name: str) -> float:
        tensor = segment.tensors[name]
        whole: Any = tensor.nbytes / max(1, tensor.elements)
        return tensor.elements * (self._item if whole in (2, 4) else whole)
