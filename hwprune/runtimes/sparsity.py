"""N:M layout of the weights in an ONNX file, as kernels see it: groups along the reduction dimension.

Convolutions: weights (K, C, R, S), groups of M along C for every (k, r, s). ``MatMul(A, B)``: constant B (K, N), along K.
``Gemm``: along the inner dimension of B, which transB turns. The constant is followed back through Transpose, Cast, Quantize- and
DequantizeLinear, as Polygraphy's checker does. What counts is the exported file: folding may have moved axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_THROUGH = ("Cast", "QuantizeLinear", "DequantizeLinear", "Identity")


@dataclass(frozen=True, slots=True)
class Layout:
    """One weighted node. ``fits``: every group of M keeps at most N; ``why``: why not."""

    node: str
    operator: str
    weight: str
    groups: int
    full: int
    fits: bool
    why: str


def layouts(path: Path, n: int, m: int) -> list[Layout]:
    """Every Conv, MatMul and Gemm with constant weights of the file."""
    import onnx

    return of_model(onnx.load(str(path)), n, m)


def of_model(model: Any, n: int, m: int) -> list[Layout]:
    """Like `layouts`, for a loaded ``onnx.ModelProto``."""
    stored = {item.name: item for item in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    layouts_of_weights = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or len(node.input) < 2:
            continue
        weight = _constant(node.input[1], stored, makers)
        if weight is None or weight[1].ndim < 2:
            continue
        name, array = weight
        turned = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
        axis = 1 if node.op_type == "Conv" or turned else array.ndim - 2
        layouts_of_weights.append(_layout(node, name, np.moveaxis(array, axis, -1), n, m))
    return layouts_of_weights


def _layout(node: Any, weight: str, reduced_last: np.ndarray[Any, Any], n: int, m: int) -> Layout:
    size = reduced_last.shape[-1]
    if size % m:
        why = f"its {size} inputs are not a multiple of {m}"
        return Layout(node.name, node.op_type, weight, 0, 0, False, why)
    kept = np.count_nonzero(reduced_last.reshape(-1, m), axis=1)
    full = int((kept > n).sum())
    why = "" if not full else f"{full} of {len(kept)} groups keep more than {n} of {m} weights"
    return Layout(node.name, node.op_type, weight, len(kept), full, full == 0, why)


def _constant(name: str, stored: dict[str, Any], makers: dict[str, Any]) -> tuple[str, np.ndarray[Any, Any]] | None:
    """The initializer behind ``name`` in the layout in which it is read, or None."""
    from onnx import numpy_helper

    if name in stored:
        array = numpy_helper.to_array(stored[name])
        return name, array.astype(np.float32) if array.dtype.kind not in "iuf" else array
    node = makers.get(name)
    if node is None:
        return None
    if node.op_type == "Constant":
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        return None if value is None else (name, numpy_helper.to_array(value))
    inner = _constant(node.input[0], stored, makers) if node.op_type in (*_THROUGH, "Transpose") else None
    if inner is None or node.op_type != "Transpose":
        return inner if inner is None else _without_zero_point(node, inner, stored)
    order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
    return inner[0], np.transpose(inner[1], order)


def _without_zero_point(
    node: Any, stored_weight: tuple[str, np.ndarray[Any, Any]], stored: dict[str, Any]
) -> tuple[str, np.ndarray[Any, Any]]:
    """Quantised weights: zero is the zero point. Per-channel zero points other than 0 are subtracted along their axis."""
    from onnx import numpy_helper

    name, array = stored_weight
    if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[2] not in stored:
        return stored_weight
    point = numpy_helper.to_array(stored[node.input[2]]).astype(np.int32)
    if not point.any():
        return stored_weight
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
    if point.ndim == 1 and point.size > 1:
        shape = [1] * array.ndim
        shape[axis] = point.size
        point = point.reshape(shape)
    return name, array.astype(np.int32) - point
