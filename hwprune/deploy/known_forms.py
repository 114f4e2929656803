"""Operators that a converter does not know, in forms that it knows, exactly equal to them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

SPATIAL = (2, 3)


def strided_slices_as_pools(model: onnx.ModelProto) -> int:
    """Every second pixel (``x[:, :, ::2, ::2]``) as a pooling of single pixels; how many were rewritten.

    Only slices of the two spatial dims of four that begin at 0, go to the end, and are given as constants.

    Args:
        model: with shapes of fixed sizes; it is changed.
    """
    shapes = _ranks(model)
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    count = 0
    for node in model.graph.node:
        if node.op_type != "Slice" or len(node.input) < 5 or len(shapes.get(node.input[0], ())) != 4:
            continue
        values = [stored.get(name) for name in node.input[1:5]]
        if any(value is None for value in values):
            continue
        starts, ends, axes, steps = ([int(x) for x in np.asarray(value).reshape(-1)] for value in values)
        axes = [axis % 4 for axis in axes]
        sizes = shapes[node.input[0]]
        whole = all(start == 0 and end >= sizes[axis] for start, end, axis in zip(starts, ends, axes, strict=True))
        if not whole or not set(axes) <= set(SPATIAL) or min(steps) < 1:
            continue
        strides = [dict(zip(axes, steps, strict=True)).get(axis, 1) for axis in SPATIAL]
        pool = helper.make_node("MaxPool", node.input[:1], node.output, name=node.name, kernel_shape=[1, 1], strides=strides)
        node.CopyFrom(pool)
        count += 1
    return count


def nan_tests_as_comparisons(model: onnx.ModelProto) -> int:
    """``IsNaN(x)`` as ``Not(Equal(x, x))``, which it is; how many were rewritten. PyTorch guards each softmax so."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "IsNaN":
            nodes.append(node)
            continue
        equal = f"{node.output[0]}.equal"
        nodes.append(helper.make_node("Equal", [node.input[0], node.input[0]], [equal], name=f"{node.name}.equal"))
        nodes.append(helper.make_node("Not", [equal], node.output, name=node.name))
    count = len(nodes) - len(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count


def _ranks(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Sizes of every tensor that inference finds."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        item.name: tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)
        for item in (*inferred.input, *inferred.value_info, *inferred.output)
    }
