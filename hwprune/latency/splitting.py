"""Dividing an ONNX model into the segments that a runtime fuses."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from hwprune.errors import UsageError, first_line
from hwprune.latency.segments import ANCHORS, SMALL, Segment, Tensor, has_values

_STRUCTURAL = {
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Pad": (1, 2, 3),
    "Clip": (1, 2),
    "Range": (0, 1, 2),
    "TopK": (1,),
    "Tile": (1,),
}
"""Inputs of any type whose values decide shapes or which kernel runs."""
_FOLDABLE = frozenset("Cast Identity Unsqueeze Squeeze Concat Gather Slice Reshape Transpose Add Sub Mul Div Shape Range".split())  # noqa: SIM905
"""Cheap operators that are computed away where all their inputs are small constants."""


def split(model: onnx.ModelProto, shapes: Sequence[Sequence[int]] | None = None) -> list[Segment]:
    """The segments of a model, in topological order.

    Args:
        shapes: of the model's inputs; default: as declared, free dimensions are 1.

    Raises:
        UsageError: shapes don't fit, or a tensor's shape can't be inferred.
    """
    fixed, constants = with_shapes(model, shapes)
    graph = fixed.graph
    tensors = _tensors(fixed)
    nodes = list(graph.node)
    where = _assign(nodes)
    groups: dict[int, list[onnx.NodeProto]] = {}
    for position, node in enumerate(nodes):
        groups.setdefault(where[position], []).append(node)
    opsets = tuple((item.domain, item.version) for item in fixed.opset_import)
    final = {item.name for item in graph.output}
    readers: dict[str, set[int]] = {}
    for position, node in enumerate(nodes):
        for name in _reads(node):
            readers.setdefault(name, set()).add(where[position])
    segments = []
    for number in sorted(groups):
        members = groups[number]
        written = {name for node in members for name in node.output if name}
        read = list(dict.fromkeys(name for node in members for name in _reads(node)))
        inputs = [name for name in read if name not in written and name not in constants]
        outputs = [n for node in members for n in node.output if n and (n in final or readers.get(n, set()) - {number})]
        unknown = [name for name in (*inputs, *outputs) if name not in tensors]
        if unknown:
            raise UsageError(
                f"the shape of {unknown[0]} ({members[0].op_type}) can't be inferred; is the model's graph complete?"
            )
        anchor = next((n for n in members if n.op_type in ANCHORS), None)
        used = {name: constants[name] for name in read if name in constants}
        shapes_within = {name: tensors[name] for name in (*read, *written) if name in tensors}
        segments.append(
            Segment(
                (anchor or members[0]).name or (anchor or members[0]).output[0],
                anchor.op_type if anchor is not None else "light",
                tuple(members),
                tuple(inputs),
                tuple(outputs),
                used,
                shapes_within,
                opsets,
                tuple(fixed.functions),
            )
        )
    return segments


def with_shapes(
    model: onnx.ModelProto, shapes: Sequence[Sequence[int]] | None = None
) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """A copy with fixed input shapes and every shape inferred, and its constants. Raises `UsageError`.

    What only computes shapes is folded. Weights are inputs of the copy and headers without data among the constants: nothing here
    reads them, and copying them is what takes time.
    """
    fixed = onnx.ModelProto(ir_version=model.ir_version)
    fixed.opset_import.extend(model.opset_import)
    fixed.functions.extend(model.functions)
    fixed.graph.name = model.graph.name
    fixed.graph.output.extend(model.graph.output)
    stored = {item.name: item for item in model.graph.initializer}
    nodes = _folded_constants(model, stored)
    forced = _structural_names(nodes)
    fixed.graph.node.extend(nodes)
    fixed.graph.initializer.extend(item for item in stored.values() if item.name in forced or _is_structural(item))
    kept = {item.name for item in fixed.graph.initializer}
    weights = [_header(item) for item in stored.values() if item.name not in kept]
    initialised = {item.name for item in model.graph.initializer}
    fixed.graph.input.extend(item for item in model.graph.input if item.name not in initialised)
    inputs = list(fixed.graph.input)
    if shapes is not None and len(shapes) < len(inputs):
        raise UsageError(f"the model takes {len(inputs)} inputs, {len(shapes)} shapes were given")
    for position, item in enumerate(inputs):
        dims = item.type.tensor_type.shape.dim
        given = shapes[position] if shapes is not None else [d.dim_value or 1 for d in dims]
        if len(given) != len(dims) or any(d.dim_value and d.dim_value != g for d, g in zip(dims, given, strict=False)):
            wanted = [d.dim_value or d.dim_param or "?" for d in dims]
            raise UsageError(f"input {item.name} has shape {wanted}, got {list(given)}")
        for dim, size in zip(dims, given, strict=True):
            dim.dim_value = int(size)
    fixed.graph.input.extend(onnx.helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in weights)
    for item in fixed.graph.output:
        item.type.tensor_type.ClearField("shape")
    if any(node.op_type in ("Shape", "Size", "ConstantOfShape", "Range", "NonZero") for node in fixed.graph.node):
        fixed = _folded(fixed)
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
        return inferred, {item.name: item for item in (*inferred.graph.initializer, *weights)}
    except onnx.shape_inference.InferenceError as error:
        raise UsageError(f"the shapes of the model don't fit: {first_line(error)}") from error


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shape arithmetic computed away, now that shapes are known."""
    from onnxscript import optimizer

    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it can't fold it says, and leaves as it is
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result: onnx.ModelProto = optimizer.optimize(onnx.shape_inference.infer_shapes(model, data_prop=True))
    finally:
        logger.setLevel(level)
    del result.graph.value_info[:]
    return result


def _header(item: onnx.TensorProto) -> onnx.TensorProto:
    return onnx.TensorProto(name=item.name, data_type=item.data_type, dims=item.dims)


def _assign(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """The segment number of each node."""
    owner: dict[str, int] = {}
    where = []
    latest = 0
    for node in nodes:
        if node.op_type in ANCHORS:
            latest += 1
            number = latest
        else:
            number = max((owner[name] for name in _reads(node) if name in owner), default=0)
        where.append(number)
        for name in node.output:
            owner[name] = number
    return where


def _folded_constants(model: onnx.ModelProto, stored: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """The nodes without those that only make constants; what they make goes to ``stored``."""
    from onnx.reference import ReferenceEvaluator

    opsets = {item.domain: item.version for item in model.opset_import}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant" and not node.domain:
            if (item := _constant(node)) is not None:
                stored[item.name] = item
                continue
        elif node.op_type in _FOLDABLE and not node.domain and node.input:
            given = [stored.get(name) for name in node.input if name]
            if all(item is not None and has_values(item) and math.prod(item.dims) <= SMALL for item in given):
                values = [numpy_helper.to_array(item) for item in given if item is not None]
                try:
                    results = ReferenceEvaluator(node, opsets=opsets).run(
                        None, dict(zip([name for name in node.input if name], values, strict=True))
                    )
                except Exception:  # an operator or type that the reference doesn't know stays a node
                    nodes.append(node)
                    continue
                for name, value in zip(node.output, results, strict=True):
                    stored[name] = numpy_helper.from_array(np.asarray(value), name)
                continue
        nodes.append(node)
    return nodes


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node in any of its forms; None for those of strings and sparse tensors."""
    for attribute in node.attribute:
        value: Any = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            item = onnx.TensorProto()
            item.CopyFrom(value)
            item.name = node.output[0]
            return item
        kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
        if attribute.name in kinds:
            return numpy_helper.from_array(np.array(value, kinds[attribute.name]), node.output[0])
    return None


def _structural_names(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Constants whose values decide shapes or kernels although they are floats."""
    return {
        node.input[slot]
        for node in nodes
        for slot in _STRUCTURAL.get(node.op_type, ())
        if slot < len(node.input) and node.input[slot]
    }


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that a node reads, those of its inner graphs too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            within = {name for inner in graph.node for name in inner.output} | {
                i.name for i in (*graph.input, *graph.initializer)
            }
            for inner in graph.node:
                yield from (name for name in _reads(inner) if name not in within)


def _tensors(model: onnx.ModelProto) -> dict[str, Tensor]:
    tensors = {item.name: Tensor(tuple(item.dims), item.data_type) for item in model.graph.initializer}
    for item in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = item.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            tensors[item.name] = Tensor(tuple(d.dim_value for d in kind.shape.dim), kind.elem_type)
    return tensors


def _is_structural(item: onnx.TensorProto) -> bool:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    return math.prod(item.dims) <= SMALL and (item.data_type not in floats or not item.dims)
