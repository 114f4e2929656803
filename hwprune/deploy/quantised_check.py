"""A quantised model beside the one that it was made of, layer by layer: what rounding does not explain is a fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from hwprune.deploy.normalising import WEIGHTED
from hwprune.structure.onnx.flatten import write_notes

RIGHT, WRONG, WRONG_IN_4_BITS = 0.1, 0.3, 0.6
"""Standard error of a tensor, as a share of its standard deviation: below the first its inputs are right, from the second on what
is made of them is not what rounding makes. (8 bits with an outlier of fifty standard deviations in the activations: 0.11; weights
in 4 bits, in blocks of 32: 0.09, and 0.33 where the sums of a layer nearly cancel.)"""
MOST_BYTES = 500_000_000
"""How much of the tensors is looked at."""

Arrays = Sequence[np.ndarray[Any, Any]]


def faults(dense: onnx.ModelProto, quantised: onnx.ModelProto, inputs: Arrays, bits: int = 8) -> list[str]:
    """Layers whose inputs are right and whose outputs are not, in words; also outputs of the model that are not finite.

    Args:
        inputs: a batch of the model's inputs, in order.
        bits: of a weight.
    """
    wrong = WRONG_IN_4_BITS if bits <= 4 else WRONG
    stored = {item.name for item in dense.graph.initializer}
    layers = [node for node in dense.graph.node if node.op_type in WEIGHTED and node.output]
    results = {name for node in quantised.graph.node for name in node.output}
    seen = [node for node in layers if node.output[0] in results]
    names = list(dict.fromkeys([*(item.name for item in dense.graph.output), *(node.output[0] for node in seen)]))
    wanted, got = (_run(model, names, inputs) for model in (dense, quantised))
    errors = {name: _error(got[name], wanted[name]) for name in names if name in got and name in wanted}
    makers = {name: node for node in dense.graph.node for name in node.output}
    found = []
    for node in seen:
        error = errors.get(node.output[0])
        if error is None or error < wrong:
            continue
        before = max((errors[name] or 0.0 for name in _layers_before(node, makers, stored) if name in errors), default=0.0)
        if before < RIGHT:
            what = f"{node.name or node.output[0]} ({node.op_type})"
            found.append(f"{what}: {100 * error:.0f} % off, its inputs {100 * before:.0f} %")
    outputs = [item.name for item in dense.graph.output if item.name in got]
    broken = [name for name in outputs if not _finite(got[name])]
    was_finite = [name for name in broken if _finite(wanted[name])]
    return [*found, *(f"output {name} is not finite" for name in was_finite)]


def _layers_before(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], stored: set[str]) -> set[str]:
    """Outputs of the nearest layers that a layer's inputs come from."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [name for name in node.input if name and name not in stored]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        maker = makers[name]
        if maker.op_type in WEIGHTED:
            found.add(maker.output[0])
        else:
            waiting += [one for one in maker.input if one and one not in stored]
    return found


def _run(model: onnx.ModelProto, names: Sequence[str], inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    import onnxruntime

    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    write_notes(onnx.ModelProto(), wide)
    there = {item.name for item in wide.graph.output}
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(wide.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {item.name: array for item, array in zip(session.get_inputs(), inputs, strict=False)}
    found: dict[str, np.ndarray[Any, Any]] = {}
    size = 0
    for name, value in zip(names, session.run(list(names), given), strict=True):
        size += value.nbytes
        if size > MOST_BYTES:
            break
        found[name] = value
    return found


def _finite(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _error(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float | None:
    """Standard error over the standard deviation; None of what does not vary, or is no number."""
    if got.shape != wanted.shape or wanted.dtype.kind != "f" or wanted.size < 2:
        return None
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    spread = float(b.std())
    if not np.isfinite(b).all() or spread < 1e-6 * max(float(np.abs(b).max()), 1e-30):
        return None
    off = float(np.sqrt(np.square(a - b).mean())) / spread
    return off if np.isfinite(off) else float("inf")
