"""What pruning has left in a file: zeros of each weight, and the N:M layout as kernels see it.

Recorded when a point is exported, looked at again by `hwprune verify`: a conversion, a training or a quantiser in between may
have filled what was empty, and then no sparse kernel runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from hwprune.runtimes import sparsity

_N_OF_M = re.compile(r"(\d+):(\d+)")
LEAST = 0.01
"""Share of zeros below which a weight counts as dense."""


def describe(model: Path, patterns: Iterable[str]) -> dict[str, Any]:
    """``zeros``: weight -> share of exact zeros, of those that have any to speak of; ``n_of_m``: pattern -> weights that keep it.

    Args:
        patterns: of the recipe; N:M ones are looked for.
    """
    proto = onnx.load(str(model))
    description: dict[str, Any] = {"zeros": _zeros(proto), "n_of_m": {}}
    for pattern in sorted(set(patterns)):
        if (match := _N_OF_M.match(pattern)) is not None:
            layouts = sparsity.of_model(proto, int(match[1]), int(match[2]))
            kept = [layout.weight for layout in layouts if layout.fits and layout.groups]
            description["n_of_m"][f"{match[1]}:{match[2]}"] = sorted(set(kept))
    return description


def faults(model: Path, recorded: Mapping[str, Any]) -> list[str]:
    """What the file has lost of a description of `describe`; empty: nothing."""
    proto = onnx.load(str(model))
    zeros = _zeros(proto)
    lost = [
        f"{name} has {100 * zeros.get(name, 0.0):.1f} % zeros, recorded {100 * share:.1f} %"
        for name, share in recorded.get("zeros", {}).items()
        if zeros.get(name, 0.0) < share - 1e-6
    ]
    for pattern, weights in recorded.get("n_of_m", {}).items():
        n, m = (int(part) for part in pattern.split(":"))
        layouts = {layout.weight: layout for layout in sparsity.of_model(proto, n, m)}
        for weight in weights:
            layout = layouts.get(weight)
            if layout is None:
                lost.append(f"{weight}, which was {pattern}, is gone")
            elif not layout.fits:
                lost.append(f"{weight} is no longer {pattern}: {layout.why}")
    return lost


def summary(recorded: Mapping[str, Any]) -> str:
    """One line."""
    zeros, layouts = recorded.get("zeros", {}), recorded.get("n_of_m", {})
    parts = [f"{len(weights)} weights in {pattern}" for pattern, weights in layouts.items()]
    parts.append(f"{len(zeros)} weights with zeros" if zeros else "no masked weights")
    return ", ".join(parts)


def _zeros(proto: onnx.ModelProto) -> dict[str, float]:
    shares = {}
    for item in proto.graph.initializer:
        if len(item.dims) > 1 and item.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8):
            share = float(np.mean(numpy_helper.to_array(item) == 0)) if np.prod(item.dims) else 0.0
            if share >= LEAST:
                shares[item.name] = round(share, 6)
    return shares
