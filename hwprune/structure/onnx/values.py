"""Small numbers inside an ONNX graph: the shape computations that exporters write out as operators.

They are evaluated with NumPy at analysis time, and again for the sizes after a cut, to see what has to be rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hwprune.structure.symbols import PRIMES

Array = NDArray[Any]

LIMIT = 4096
"""Larger arrays are data, not shapes."""


def is_small(array: Array) -> bool:
    """Numbers that may be part of a shape computation: whole numbers, or a single one of any kind."""
    return array.size <= LIMIT and (array.dtype.kind in "iub" or array.size == 1)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values."""
    values: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        values[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return values


def _dtype(number: int) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(number)


def _slice(data: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    sliced = range(len(starts)) if axes is None else [int(a) for a in axes]
    strides = [1] * len(starts) if steps is None else [int(s) for s in steps]
    index: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, sliced, strides, strict=True):
        stop = int(end)
        # A backward slice to before the first entry is written with a very negative end.
        index[axis] = slice(int(start), None if step < 0 and stop < -data.shape[axis] else stop, step)
    return data[tuple(index)]


def _reshape(data: Array, shape: Array, allowzero: int = 0) -> Array:
    sizes = [data.shape[i] if size == 0 and not allowzero else int(size) for i, size in enumerate(shape)]
    return data.reshape(sizes)


def _squeeze(data: Array, axes: Any = None) -> Array:
    return np.squeeze(data, None if axes is None else tuple(int(a) for a in np.atleast_1d(axes)))


def _unsqueeze(data: Array, axes: Any) -> Array:
    return np.expand_dims(data, tuple(int(a) for a in np.atleast_1d(axes)))


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f" or b.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray(np.trunc(a.astype(np.float64) / b).astype(a.dtype)) if (a < 0).any() or (b < 0).any() else a // b


_BINARY: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Mod": np.mod, "Pow": np.power,
    "Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater, "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and, "Or": np.logical_or, "Max": np.maximum, "Min": np.minimum,
}  # fmt: skip
_UNARY: dict[str, Callable[..., Any]] = {
    "Identity": np.asarray, "Neg": np.negative, "Abs": np.abs, "Not": np.logical_not, "Floor": np.floor, "Ceil": np.ceil,
    "Sqrt": np.sqrt, "Reciprocal": np.reciprocal,
}  # fmt: skip


def beyond_the_table(sizes: Sequence[int], bounds: Sequence[Array | None]) -> dict[int, int]:
    """The size of a Slice's result by axis, where its end is a size that is known at run time only.

    A table of positions is cut to the tokens that come in. The stand-in for their number is larger than any table, and would be
    taken for "to the end"; at run time there are never more tokens than the table has rows.

    Args:
        sizes: of what is sliced.
        bounds: starts, ends, axes and steps, as far as they are known.
    """
    starts, ends, axes, steps = [None if bound is None else bound.tolist() for bound in bounds] + [None] * (4 - len(bounds))
    if starts is None or ends is None or any(step != 1 for step in steps or ()):
        return {}
    found = {}
    for start, end, axis in zip(starts, ends, range(len(starts)) if axes is None else axes, strict=True):
        if max(sizes[axis], PRIMES[0] // 2) < end < 2**31 - 1 and 0 <= start < end:
            found[axis % len(sizes)] = end - start
    return found


def cut_table(table: onnx.TypeProto | None, bounds: Sequence[Array | None]) -> onnx.TypeProto | None:
    """The type of what `beyond_the_table` speaks of; None of any other Slice."""
    if table is None or not table.tensor_type.HasField("shape"):
        return None
    sizes = [dim.dim_value for dim in table.tensor_type.shape.dim]
    free = beyond_the_table(sizes, bounds) if all(sizes) else {}
    made = [free.get(axis, size) for axis, size in enumerate(sizes)]
    return onnx.helper.make_tensor_type_proto(table.tensor_type.elem_type, made) if free else None


def range_type(bounds: Sequence[Array | None]) -> onnx.TypeProto | None:
    """The type of a Range with known bounds. Shape inference writes the numbers out, and gives up on many."""
    if any(bound is None for bound in bounds):
        return None
    start, limit, step = (bound.item() for bound in bounds if bound is not None)
    count = max(0, ceil((limit - start) / step)) if isinstance(step, float) else max(0, -(-(limit - start) // step))
    kind = onnx.helper.np_dtype_to_tensor_dtype(bounds[0].dtype)  # type: ignore[union-attr]  # none is None
    return onnx.helper.make_tensor_type_proto(kind, [count])


def evaluate(
    node: onnx.NodeProto,
    options: Mapping[str, Any],
    inputs: Sequence[Array | None],
    shape: Callable[[str], tuple[int, ...] | None],
) -> Array | None:
    """The node's only output, or None if it is no shape computation or an input is not known.

    Args:
        inputs: known values of its inputs; None where one isn't known.
        shape: tensor name -> its shape, or None.
    """
    kind = node.op_type
    if kind in ("Shape", "Size"):
        sizes = shape(node.input[0])
        if sizes is None:
            return None
        if kind == "Size":
            return np.asarray(prod(sizes), dtype=np.int64)
        return np.asarray(sizes[options.get("start", 0) : options.get("end", len(sizes))], dtype=np.int64)
    given = [value for value in inputs if value is not None]
    if len(given) < len(inputs):  # unknown, or left out in the middle
        return None
    if kind == "Slice" and beyond_the_table(given[0].shape, given[1:]):
        return None
    try:
        result = compute(kind, options, given)
    except (ValueError, IndexError, TypeError, ZeroDivisionError, OverflowError, MemoryError):
        return None
    return result if result is not None and is_small(result) else None


def compute(kind: str, options: Mapping[str, Any], given: list[Array]) -> Array | None:  # noqa: PLR0912 - a table with arguments
    """One operator's output with NumPy, or None if it isn't among those that shape computations use."""
    if kind in _UNARY:
        return np.asarray(_UNARY[kind](given[0]))
    if kind in _BINARY and len(given) == 2:
        return np.asarray(_BINARY[kind](*given))
    match kind:
        case "Cast":
            return given[0].astype(_dtype(options["to"]))
        case "CastLike":
            return given[0].astype(given[1].dtype)
        case "Gather":
            return np.asarray(np.take(given[0], given[1], axis=options.get("axis", 0)))
        case "Concat":
            return np.concatenate(given, axis=options["axis"])
        case "Transpose":
            return np.transpose(given[0], options.get("perm"))
        case "Unsqueeze":
            return _unsqueeze(given[0], given[1] if len(given) > 1 else options["axes"])
        case "Squeeze":
            return _squeeze(given[0], given[1] if len(given) > 1 else options.get("axes"))
        case "Slice":
            return _slice(*given)
        case "Reshape":
            return _reshape(given[0], given[1], options.get("allowzero", 0))
        case "Where":
            return np.where(given[0], given[1], given[2])
        case "Range":
            start, limit, step = (value.item() for value in given)
            return np.arange(start, limit, step, dtype=given[0].dtype) if abs((limit - start) / step) <= LIMIT else None
        case "ConstantOfShape":
            value = onnx.numpy_helper.to_array(options["value"]) if "value" in options else np.zeros(1, dtype=np.float32)
            return np.full([int(size) for size in given[0]], value[0]) if np.prod(given[0].astype(float)) <= LIMIT else None
        case "Expand":
            if np.prod(given[1].astype(float)) > LIMIT:
                return None
            return np.broadcast_to(given[0], np.broadcast_shapes(given[0].shape, tuple(int(s) for s in given[1])))
        case "ReduceProd":
            axes = given[1] if len(given) > 1 else options.get("axes")
            return np.asarray(
                np.prod(
                    given[0],
                    axis=None if axes is None else tuple(int(a) for a in axes),
                    keepdims=bool(options.get("keepdims", 1)),
                )
            )
    return None
