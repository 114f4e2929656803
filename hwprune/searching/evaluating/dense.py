"""The dense model as the baseline, and the samples it is scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch

from hwprune.records.measurement import Measurement
from hwprune.workload.scoring import Outputs

CHUNK = 32
"""Examples run at a time where a model lets its batches be divided: activations that fit into a CPU's cache, and no new pages."""
CHUNK_TOLERANCE = 1e-5
"""Largest difference that dividing a batch may make, relative to the largest output; a model that mixes examples makes more."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The dense model, measured the same way as every candidate."""

    metric: Measurement
    latency: Measurement
    self_speedup: Measurement
    """The dense model against a second copy of itself: what "no difference" looks like here."""
    params: int
    macs: int
    size_bytes: int
    split: str
    test_metric: Measurement | None = None
    footprint: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        data = {
            "metric": self.metric.to_json(),
            "latency": self.latency.to_json(),
            "self_speedup": self.self_speedup.to_json(),
            "params": self.params,
            "macs": self.macs,
            "size_bytes": self.size_bytes,
            "split": self.split,
            "footprint": dict(self.footprint),
        }
        return data if self.test_metric is None else {**data, "test_metric": self.test_metric.to_json()}


@dataclass(slots=True)
class Split:
    """Evaluation samples in a file, their targets, and the dense model's outputs on them."""

    file: Path
    targets: list[Any]
    dense: Outputs = field(default_factory=list)
    screen: int = 0
    """Leading batches on which a candidate's divergence is looked at first; 0: all at once."""

    @property
    def examples(self) -> int:
        return sum(len(batch[0]) for batch in self.dense)


def same_outputs(part: torch.Tensor, whole: torch.Tensor) -> bool:
    if part.shape != whole.shape:
        return False
    scale = max(float(whole.abs().max()), 1e-30)
    return float((part.double() - whole.double()).abs().max()) <= CHUNK_TOLERANCE * scale


def quantised(path: Path) -> bool:
    """Does an ONNX file hold integer operators or Q/DQ nodes?"""
    kinds = {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}
    return any("QuantizeLinear" in kind or "Integer" in kind or kind.startswith("QLinear") for kind in kinds)
