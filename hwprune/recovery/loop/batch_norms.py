"""Batch norms of a traced model that keep their statistics."""

from __future__ import annotations

import torch
from torch import fx

ENOUGH = 16
"""Examples in a batch whose statistics a batch norm may follow; those of fewer are noise."""
_BATCH_NORM = torch.ops.aten.batch_norm.default


def has_any(module: fx.GraphModule) -> bool:
    """Does the model hold batch norms with running statistics?"""
    return any(node.target is _BATCH_NORM and node.args[3] is not None for node in module.graph.nodes)


def frozen(module: fx.GraphModule) -> fx.GraphModule:
    """The model, parameters shared, whose batch norms take their running statistics as constants also in train mode."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.target is _BATCH_NORM and node.args[3] is not None:
            node.args = (*node.args[:5], False, *node.args[6:])
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)
