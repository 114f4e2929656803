"""Operators rewritten to those that every ONNX exporter and runtime knows."""

from __future__ import annotations

from typing import Any

import torch

_REORDERING = (torch.ops.aten.transpose.int, torch.ops.aten.permute.default)


def lowered(module: torch.nn.Module) -> torch.nn.Module:
    """A module that computes the same without what the exporter trips over.

    Fused attention over other than 4 dims has no translation, and a reshape of its result is translated as a view that only the
    fused kernel's strides allow.
    """
    if not isinstance(module, torch.fx.GraphModule):
        return module
    attention = torch.ops.aten.scaled_dot_product_attention.default
    graph = torch.fx.Graph()
    graph._codegen = module.graph._codegen
    new: dict[torch.fx.Node, torch.fx.Node] = {}
    derived: set[torch.fx.Node] = set()
    for old in module.graph.nodes:
        first = old.args[0] if old.args else None
        if old.target is attention and _rank(first) not in (4, None) and _plain(old):
            new[old] = _attention(graph, old, new)
            continue
        if old.target is attention or (isinstance(first, torch.fx.Node) and first in derived and old.target in _REORDERING):
            derived.add(old)
        new[old] = graph.node_copy(old, lambda node: new[node])
        if old.op == "output":  # numbers and texts among the outputs are no part of a file; tensors are
            new[old].args = torch.utils._pytree.tree_map(lambda x: x if _is_tensor(x) else None, new[old].args)
        if old.target is torch.ops.aten.reshape.default and first in derived:
            with graph.inserting_before(new[old]):
                whole = graph.call_function(
                    torch.ops.aten.clone.default, (new[old].args[0],), {"memory_format": torch.contiguous_format}
                )
            new[old].update_arg(0, whole)
    return torch.fx.GraphModule(module, graph)


def _is_tensor(value: Any) -> bool:
    """Is it a node that gives a tensor, and not the size of one?"""
    sized = (int, float, torch.SymInt, torch.SymFloat)
    return (
        isinstance(value, torch.fx.Node)
        and value.target is not torch.ops.aten.sym_size.int
        and not isinstance(value.meta.get("val"), sized)
    )


def _rank(node: Any) -> int | None:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, torch.Tensor) else node.meta.get("rank")


def _plain(node: torch.fx.Node) -> bool:
    """Attention that is neither causal nor grouped, of a known scale."""
    first = node.args[0]
    has_scale = "scale" in node.kwargs or (isinstance(first, torch.fx.Node) and "val" in first.meta)
    return has_scale and len(node.args) < 6 and not {"is_causal", "enable_gqa"}.intersection(node.kwargs)


def _attention(graph: torch.fx.Graph, old: torch.fx.Node, new: dict[torch.fx.Node, torch.fx.Node]) -> torch.fx.Node:
    """softmax(q k^T scale + mask) v in single operators."""
    aten = torch.ops.aten
    query, key, value = (new[node] for node in old.args[:3])  # type: ignore[index]  # the operator's inputs are nodes
    mask = old.args[3] if len(old.args) > 3 else old.kwargs.get("attn_mask")
    scale = old.kwargs.get("scale") or float(old.args[0].meta["val"].shape[-1]) ** -0.5  # type: ignore[union-attr]
    turned = graph.call_function(aten.transpose.int, (key, -2, -1))
    scores = graph.call_function(aten.matmul.default, (graph.call_function(aten.mul.Tensor, (query, scale)), turned))
    if isinstance(mask, torch.fx.Node):
        if (mask.meta["val"].dtype if "val" in mask.meta else mask.meta["dtype"]) == torch.bool:
            scores = graph.call_function(aten.where.ScalarOther, (new[mask], scores, float("-inf")))
        else:
            scores = graph.call_function(aten.add.Tensor, (scores, new[mask]))
    weights = graph.call_function(aten.softmax.int, (scores, -1))
    return graph.call_function(aten.matmul.default, (weights, value))
