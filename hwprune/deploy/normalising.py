"""An ONNX model in the forms that quantisers understand; it computes the same.

ONNX Runtime's quantiser takes a Gemm for x W + b, whatever its alpha and beta say, and gives a tensor that several operators read
one scale, by the layout of the first of them. Both are legal ONNX, and both came out wrong by 16 to 39 % in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def normalise(model: onnx.ModelProto) -> None:
    """Change a model in place.

    alpha and beta of Gemm go into weights and biases; each layout in which a weight is read has a tensor of its own, and so has
    each bias.
    """
    tensors = _Tensors(model)
    for node in model.graph.node:
        if node.op_type == "Gemm":
            _scale(node, tensors)
    layouts: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if not name or name not in tensors.stored:
                continue
            if node.op_type in WEIGHTED and place == 1:
                layout: Any = (node.op_type, _options(node).get("transB", 0), _options(node).get("group", 1))
            else:
                layout = (node.op_type, node.name, node.output[0], place) if node.op_type in WEIGHTED else "other"
            known = layouts.setdefault(name, [])
            if layout not in known:
                known.append(layout)
            if known.index(layout):
                node.input[place] = tensors.copy(name, f"{name}.{known.index(layout)}", lambda array: array)
    tensors.drop_unread()


def _scale(node: onnx.NodeProto, tensors: _Tensors) -> None:
    options = _options(node)
    alpha, beta = float(options.get("alpha", 1.0)), float(options.get("beta", 1.0))
    if alpha != 1.0 and node.input[1] in tensors.stored:
        node.input[1] = tensors.copy(node.input[1], f"{node.input[1]}.times_{alpha:g}", lambda array: array * alpha)
        _set(node, "alpha")
    biased = len(node.input) > 2 and bool(node.input[2])
    if beta == 0.0 and biased:
        del node.input[2:]
        _set(node, "beta")
    elif beta != 1.0 and (not biased or node.input[2] in tensors.stored):
        if biased:
            node.input[2] = tensors.copy(node.input[2], f"{node.input[2]}.times_{beta:g}", lambda array: array * beta)
        _set(node, "beta")


def _options(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def _set(node: onnx.NodeProto, name: str) -> None:
    """An attribute back to its default of 1."""
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


class _Tensors:
    """The initializers of a model; copies are made once for a name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.stored = {item.name: item for item in self.graph.initializer}
        self._taken = set(self.stored) | {name for node in self.graph.node for name in (*node.input, *node.output)}
        self._made: dict[tuple[str, str], str] = {}

    def copy(self, source: str, name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> str:
        """The name of a tensor made from another."""
        key = (source, name)
        if key not in self._made:
            free = name
            while free in self._taken:
                free += "_"
            array = numpy_helper.to_array(self.stored[source])
            tensor = numpy_helper.from_array(np.asarray(change(array).astype(array.dtype), order="C"), free)
            self.graph.initializer.append(tensor)
            self.stored[free] = tensor
            self._taken.add(free)
            self._made[key] = free
        return self._made[key]

    def drop_unread(self) -> None:
        """Leave out tensors that were replaced."""
        replaced = {source for source, _ in self._made}
        read = {name for node in self.graph.node for name in node.input} | {item.name for item in self.graph.output}
        inner = any(attribute.HasField("g") or attribute.graphs for node in self.graph.node for attribute in node.attribute)
        kept = [item for item in self.graph.initializer if item.name not in replaced or item.name in read or inner]
        copies = [onnx.TensorProto.FromString(item.SerializeToString()) for item in kept]
        del self.graph.initializer[:]
        self.graph.initializer.extend(copies)
