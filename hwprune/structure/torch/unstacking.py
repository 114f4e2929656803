"""Recurrent layers that PyTorch stacks in one call, as one call each: their widths are then free of each other."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map

from hwprune.structure.torch.rules.table import read_argument

aten = torch.ops.aten
STATES = {aten.lstm.input: 2, aten.gru.input: 1, aten.rnn_tanh.input: 1, aten.rnn_relu.input: 1}
"""Recurrent operators and how many states each has; the last output is the last of these."""


def projects(node: fx.Node) -> bool:
    """Does an LSTM project its state (``proj_size``)?"""
    if node.target is not aten.lstm.input:
        return False
    each = 4 if read_argument(node, "has_biases") else 2
    directions = 2 if read_argument(node, "bidirectional") else 1
    return len(read_argument(node, "params")) != each * directions * int(read_argument(node, "num_layers"))


def unstack(graph: fx.Graph) -> None:
    """Turn each stack of recurrent layers into a chain of single ones that computes the same."""
    for node in list(graph.nodes):
        if node.target in STATES and read_argument(node, "num_layers") > 1 and not projects(node):
            with graph.inserting_before(node):
                outputs = _chain(graph, node)
            for user in list(node.users):
                user.replace_all_uses_with(outputs[user.args[1]])
                graph.erase_node(user)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _call(graph: fx.Graph, target: Any, *arguments: Any) -> fx.Node:
    """A node whose recorded sizes are those that the operator gives."""
    node = graph.call_function(target, arguments)
    node.meta["val"] = target(*tree_map(lambda a: a.meta["val"] if isinstance(a, fx.Node) else a, arguments))
    return node


def _chain(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """(output, last states...) of the layers one after the other; last states are those of all layers in one tensor."""
    flat, hx, tensors, biases, layers, dropout, _train, both, batch_first = node.args
    assert isinstance(tensors, (list, tuple)) and isinstance(layers, int)
    directions, each = 2 if both else 1, 4 if biases else 2
    several = isinstance(hx, (list, tuple))
    starts: list[Any] = list(hx) if isinstance(hx, (list, tuple)) else [hx]
    per_layer = each * directions
    x: Any = flat
    ends: list[list[fx.Node]] = []
    for layer in range(layers):
        if layer and dropout:
            x = _call(graph, aten.dropout.default, x, dropout, False)
        states = [_start(graph, start, layer * directions, directions) for start in starts]
        mine = list(tensors[layer * per_layer : (layer + 1) * per_layer])
        given = (x, states if several else states[0], mine, biases, 1, 0.0, False, both, batch_first)
        one = graph.call_function(node.target, given)  # type: ignore[arg-type]  # an operator
        shape = [*x.meta["val"].shape[:2], directions * starts[0].meta["val"].shape[2]]
        one.meta["val"] = (x.meta["val"].new_empty(shape), *(state.meta["val"] for state in states))
        x, *last = [_item(graph, one, position) for position in range(1 + len(starts))]
        ends.append(last)
    read = {user.args[1] for user in node.users}
    joined = [
        _call(graph, aten.cat.default, [last[position] for last in ends], 0) if position + 1 in read else x
        for position in range(len(starts))
    ]
    return [x, *joined]


def _item(graph: fx.Graph, node: fx.Node, position: int) -> fx.Node:
    item = graph.call_function(operator.getitem, (node, position))
    item.meta["val"] = node.meta["val"][position]
    return item


def _start(graph: fx.Graph, start: fx.Node, first: int, count: int) -> fx.Node:
    """The states of one layer. Zeros are made anew: a part of what is made for all would tie their widths."""
    if start.target is aten.zeros.default:
        whole: Any = start.args[0]
        sizes = [count, *whole[1:]]
        node = graph.call_function(aten.zeros.default, (sizes,), dict(start.kwargs))
        node.meta["val"] = start.meta["val"][first : first + count]
        return node
    return _call(graph, aten.slice.Tensor, start, 0, first, first + count)
