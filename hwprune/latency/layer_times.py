"""The runtime's own profile told by the weights of the model, so that a candidate's layers stand beside the dense model's.

Runtimes fuse, rename and reorder. What survives in the name of a kernel is the name of a node or of its output; the kernel then
belongs to the weighted operator that made that tensor, or made it last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits")
OTHER = "(other)"
"""What no weight can be found for: layout conversions at the beginning, operators without a name."""
_THROUGH = ("Cast", "Transpose", "Identity", "QuantizeLinear", "DequantizeLinear")
_ENDINGS = ("_quantized", "_Q4G32", "_Q4", ".columns", "_DQ_Q4")


def times(operators: Sequence[Mapping[str, Any]], model: Any) -> dict[str, float]:
    """Seconds of one run by layer, in the order of the model.

    Args:
        operators: of `hwprune.latency.bench.Bench.profile`, in execution order.
        model: ``onnx.ModelProto`` of the file that was profiled.
    """
    owners = _owners(model)
    seconds_by_layer = dict.fromkeys(dict.fromkeys(owners.values()), 0.0)
    names = sorted(owners, key=len, reverse=True)
    layer = OTHER
    for operator in operators:
        layer = _look_up(str(operator["name"]), names, owners) or layer
        seconds_by_layer[layer] = seconds_by_layer.get(layer, 0.0) + float(operator["seconds"])
    return {name: seconds for name, seconds in seconds_by_layer.items() if seconds > 0}


def _owners(model: Any) -> dict[str, str]:
    """Node or tensor -> weight of the operator that it comes from."""
    stored = {item.name for item in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    order: dict[str, int] = {}
    owners: dict[str, str] = {}
    for place, node in enumerate(model.graph.node):
        weight = _weight(node, stored, makers) if node.op_type in WEIGHTED else None
        layer = weight
        if layer is None:  # of several inputs the one whose operator comes last: a sum belongs to the branch that it waits for
            layers = [owners[name] for name in node.input if name in owners]
            layer = max(layers, key=lambda name: order[name]) if layers else None
        if layer is None:
            continue
        order.setdefault(layer, place)
        for name in (node.name, *node.output):
            if name:
                owners[name] = layer
    return owners


def _weight(node: Any, stored: set[str], makers: Mapping[str, Any]) -> str | None:
    """The initializer behind an operator's second input, without what quantisers append to its name."""
    name = str(node.input[1]) if len(node.input) > 1 else ""
    while name in makers and makers[name].op_type in _THROUGH:
        name = str(makers[name].input[0])
    if name not in stored:
        return None
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name


def _look_up(text: str, names: Sequence[str], owners: Mapping[str, str]) -> str | None:
    if text in owners:
        return owners[text]
    for name in names:
        if name in text and re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", text):
            return owners[name]
    return None
