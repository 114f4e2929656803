"""Attention as PyTorch's exporter writes it, in fewer operators.

Before the product of queries and keys the exporter flattens the keys, turns them, and gives them their shape back; it scales
queries and keys by the root of a factor each; and it asks after the softmax whether a row has become NaN, which only rows without
any key do. In a decoder each token sees itself at least. All of that runs for every block and token.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hwprune.structure.onnx.flatten import captured

_FLAT = (0, 2, 1)
"""Keys (batch * heads, tokens, size) turned."""
_TURNED = (0, 1, 3, 2)


def simplify_decoder_attention(model: onnx.ModelProto) -> int:
    """Rewrite a decoder's graph in place; returns in how many attentions keys are turned at once now. Others stay as they are."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    constants = {item.name: item for item in graph.initializer}
    before: dict[int, list[onnx.NodeProto]] = {}
    found = skipped = 0
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        skipped += _skip_nan(softmax, users)
        scores = makers.get(softmax.input[0])
        product = makers.get(scores.input[0]) if scores is not None and scores.op_type == "Add" else scores
        if product is not None and product.op_type == "MatMul":
            turned = _keys_turned_at_once(product, makers, constants, graph)
            if turned:
                before[id(product)] = turned
                found += 1
    if found or skipped:
        nodes = [one for node in graph.node for one in (*before.get(id(node), []), node)]
        _keep_used(graph, nodes)
    return found


def _skip_nan(softmax: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whoever reads Where(IsNaN(softmax), ..., softmax) reads the softmax."""
    name, skipped = softmax.output[0], False
    for where in [node for node in users[name] if node.op_type == "Where" and node.input[2] == name]:
        if any(where.input[0] in node.output for node in users[name] if node.op_type == "IsNaN"):
            for node in users[where.output[0]]:
                node.input[list(node.input).index(where.output[0])] = name
            skipped = True
    return skipped


def _keys_turned_at_once(
    product: onnx.NodeProto, makers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto], graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """One Transpose for the keys and one factor for the queries, which the product then reads."""
    queries, keys = (makers.get(name) for name in product.input)
    if queries is None or keys is None or queries.op_type != "Mul" or keys.op_type != "Mul":
        return []
    factors = [_scalar(constants.get(node.input[1])) for node in (queries, keys)]
    back = makers.get(keys.input[0])
    turn = makers.get(back.input[0]) if back is not None and back.op_type == "Reshape" else None
    flat = makers.get(turn.input[0]) if turn is not None and turn.op_type == "Transpose" else None
    if flat is None or flat.op_type != "Reshape" or None in factors or _order(turn) != _FLAT:
        return []
    name = product.output[0]
    factor, scaled, turned = f"{name}.factor", f"{name}.queries", f"{name}.keys"
    graph.initializer.append(numpy_helper.from_array(np.array(factors[0] * factors[1], np.float32), factor))  # type: ignore[operator]
    inputs = queries.input[0], flat.input[0]
    product.input[0], product.input[1] = scaled, turned
    return [
        helper.make_node("Mul", [inputs[0], factor], [scaled], name=scaled),
        helper.make_node("Transpose", [inputs[1]], [turned], perm=_TURNED, name=turned),
    ]


def _scalar(tensor: onnx.TensorProto | None) -> float | None:
    if tensor is None or np.prod(tensor.dims) != 1 or tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    return float(numpy_helper.to_array(tensor).reshape(()))


def _order(node: onnx.NodeProto | None) -> tuple[int, ...]:
    return tuple(value for one in (node.attribute if node is not None else ()) if one.name == "perm" for value in one.ints)


def _keep_used(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """The graph with these nodes, without those whose outputs nobody reads."""
    wanted, kept = {item.name for item in graph.output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            kept.append(copied)
            wanted.update(node.input, captured(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for item in [item for item in graph.initializer if item.name not in wanted]:
        graph.initializer.remove(item)
