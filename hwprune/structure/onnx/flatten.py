"""ONNX graphs made plain before they are walked: functions, constants, fills."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper

from hwprune.errors import UsageError
from hwprune.structure.onnx.values import LIMIT, attributes

MIN_OPSET = 13
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its graph: versions, and what its maker wrote into it."""
    shell = onnx.ModelProto(ir_version=model.ir_version)
    shell.opset_import.extend(model.opset_import)
    write_notes(model, shell)
    return shell


def write_notes(model: onnx.ModelProto, onto: onnx.ModelProto) -> None:
    """Copy what the maker of a model wrote into it: applications read class names, strides and the like from there."""
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if getattr(model, name):
            setattr(onto, name, getattr(model, name))
    del onto.metadata_props[:]
    onto.metadata_props.extend(model.metadata_props)
    if model.graph.doc_string:
        onto.graph.doc_string = model.graph.doc_string


def flatten(model: onnx.ModelProto, named: Collection[str] = ()) -> onnx.ModelProto:
    """Functions inlined, Constant nodes as initializers, constants of equal entries one for each use.

    Exporters share a vector of ones among all the normalisations that need one; as one tensor it would tie their axes.
    """
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        raise UsageError(
            f"the ONNX model has opset {opset}; hwprune reads {MIN_OPSET} and newer. "
            "onnx.version_converter.convert_version(model, 17) brings it there"
        )
    if model.functions:
        model = inliner.inline_local_functions(model)
    flat = without_graph(model)
    flat.graph.CopyFrom(model.graph)
    del flat.graph.node[:]
    del flat.graph.value_info[:]
    names = {item.name for item in model.graph.initializer}
    for node in model.graph.node:
        tensor = _constant(node) if node.op_type == "Constant" else None
        if tensor is None:
            flat.graph.node.append(node)
        elif node.output[0] not in names:
            flat.graph.initializer.append(tensor)
    for item in flat.graph.initializer:
        if item.data_location == TensorProto.EXTERNAL:
            raise UsageError("the ONNX model's external data was not loaded with it")
    _divide_constants(flat.graph, named)
    _divide_fills(flat.graph)
    inputs = [item for item in flat.graph.input if item.name not in {t.name for t in flat.graph.initializer}]
    del flat.graph.input[:]
    flat.graph.input.extend(inputs)
    return flat


def _divide_constants(graph: onnx.GraphProto, named: Collection[str]) -> None:
    stored = {item.name: item for item in graph.initializer}
    seen: set[str] = set()
    for node in graph.node:
        for position, name in enumerate(node.input):
            item = stored.get(name)
            if item is None or name in named or not 1 < int(np.prod(item.dims)) <= LIMIT or item.data_type not in FLOATS:
                continue
            if name not in seen:
                seen.add(name)
                continue
            array = numpy_helper.to_array(item)
            if (array == array.reshape(-1)[0]).all():
                copy = TensorProto()
                copy.CopyFrom(item)
                copy.name = f"{name}_{node.output[0]}"  # names of outputs are unique
                graph.initializer.append(copy)
                node.input[position] = copy.name


_OF_FILLS = frozenset(("Slice", "Unsqueeze", "Squeeze", "Transpose", "Identity", "Cast"))
"""Operators that make one filled tensor of another."""


def _divide_fills(graph: onnx.GraphProto) -> None:
    """Tensors filled with one number, one for each use: a state of zeros shared by two layers would tie their axes."""
    stored = {item.name for item in graph.initializer}
    scalars = {item.name for item in graph.initializer if int(np.prod(item.dims)) == 1}
    fills: dict[str, list[onnx.NodeProto]] = {}
    seen: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        derived = node.op_type in _OF_FILLS and node.input[0] in fills and all(name in stored for name in node.input[1:] if name)
        for position, name in enumerate(node.input):
            if name not in fills or derived:
                continue
            if name not in seen:
                seen.add(name)
                continue
            copies = _renamed(fills[name], f"_{node.output[0]}_{position}")  # names of outputs are unique
            nodes.extend(copies)
            node.input[position] = copies[-1].output[0]
        if node.op_type == "ConstantOfShape" or (node.op_type == "Expand" and node.input[0] in scalars):
            fills[node.output[0]] = [node]
        elif derived:
            fills[node.output[0]] = [*fills[node.input[0]], node]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _renamed(chain: Sequence[onnx.NodeProto], suffix: str) -> list[onnx.NodeProto]:
    """Copies of nodes that follow one another, with names of their own."""
    copies: list[onnx.NodeProto] = []
    for node in chain:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if copies:
            copy.input[0] = copies[-1].output[0]
        copy.output[0] = copy.name = node.output[0] + suffix
        copies.append(copy)
    return copies


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    options = attributes(node)
    name = node.output[0]
    if "value" in options:
        tensor = TensorProto()
        tensor.CopyFrom(options["value"])
        tensor.name = name
        return tensor
    for key, dtype in (
        ("value_ints", np.int64),
        ("value_int", np.int64),
        ("value_floats", np.float32),
        ("value_float", np.float32),
    ):
        if key in options:
            return numpy_helper.from_array(np.asarray(options[key], dtype=dtype), name)
    return None


def captured(node: onnx.NodeProto) -> set[str]:
    """Names of outer tensors that the node's subgraphs may read."""
    names: set[str] = set()
    for attribute in node.attribute:
        for graph in (
            [attribute.g, *attribute.graphs] if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) else []
        ):
            for inner in graph.node:
                names.update(name for name in inner.input if name)
                names |= captured(inner)
            names.update(item.name for item in graph.output)
    return names


def only_scaled(graph: onnx.GraphProto) -> set[str]:
    """Tensors that are read as quantised numbers or zero points alone: they are data, and their dims are like any other's."""
    scaled, otherwise = set[str](), set[str]()
    for node in graph.node:
        (scaled if node.op_type in ("QuantizeLinear", "DequantizeLinear") else otherwise).update(node.input)
        otherwise |= captured(node)
    return scaled - otherwise


def whole_inference(model: onnx.ModelProto, names: Mapping[str, int]) -> dict[str, onnx.TypeProto]:
    """What ONNX's inference over a whole model finds.

    Args:
        names: free size -> the number that stands for it.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        inferred = model
    found: dict[str, onnx.TypeProto] = {}
    for item in inferred.graph.value_info:
        kind = onnx.TypeProto()
        kind.CopyFrom(item.type)
        for dim in kind.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_value = names[dim.dim_param]
        found[item.name] = kind
    return found
