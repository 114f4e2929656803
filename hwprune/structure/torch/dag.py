"""A traced graph as names: what depends on what, which is what finding and dropping branches needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from hwprune.structure.branches import Dag
from hwprune.structure.scope import Value

SUMS_IN_PLACE = (torch.ops.aten.add_.Tensor,)
_SUMS = (torch.ops.aten.add.Tensor, *SUMS_IN_PLACE)


_RETURNS_ITS_INPUT = (
    torch.ops.aten.dropout.default,
    torch.ops.aten.feature_dropout.default,
    torch.ops.aten.alpha_dropout.default,
)


def _may_alias(node: fx.Node) -> bool:
    """May the result share the storage of its first input?"""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # a getitem
    return node.target in _RETURNS_ITS_INPUT or any(result.alias_info is not None for result in node.target._schema.returns)


def dag_of(module: fx.GraphModule, values: Mapping[fx.Node, Any] | None) -> Dag:
    """The graph as names, for finding branches."""
    read = values or {}
    nodes: dict[str, list[str]] = {}
    tensors: dict[str, str] = {}
    weights: set[str] = set()
    sums: dict[str, tuple[str, str]] = {}
    data: set[str] = set()
    writes: dict[str, str] = {}
    storage: dict[str, str] = {}
    outputs: list[str] = []
    end: str | None = None
    for node in module.graph.nodes:
        nodes[node.name] = [source.name for source in node.all_input_nodes]
        value = read.get(node)
        meta = node.meta.get("val")
        if node.op == "output":
            outputs, end = nodes[node.name], node.name
        elif node.op == "get_attr" and isinstance(value, Value):
            tensors[node.name] = str(node.target)
            if len(value) > 1:
                weights.add(str(node.target))
        elif isinstance(meta, torch.Tensor) and meta.is_floating_point():
            data.add(node.name)
        if node.op == "call_function" and nodes[node.name]:
            first = nodes[node.name][0]
            storage[node.name] = storage.get(first, first) if _may_alias(node) else node.name
            if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
                writes[node.name] = storage[node.name]
        if node.target in _SUMS and not node.kwargs and len(node.args) == 2:
            sides = [read.get(operand) if isinstance(operand, fx.Node) else None for operand in node.args]
            shape = [dim.size for dim in value.dims] if isinstance(value, Value) else None
            same = all(isinstance(side, Value) and [dim.size for dim in side.dims] == shape for side in sides)
            if same and all(operand in data for operand in (str(node.args[0]), str(node.args[1]))):
                sums[node.name] = (str(node.args[0]), str(node.args[1]))
    return Dag(nodes, outputs, tensors, frozenset(weights), sums, frozenset(data), writes, end)


def erase_dropped(graph: fx.Graph, new: Mapping[str, fx.Node], dag: Dag, sides: Mapping[str, int]) -> set[str]:
    """Replace sums by the side that stays and erase what is dead; returns the tensors that went."""
    live = dag.live(sides)
    for name, side in sides.items():
        stays = new[name].args[1 - side]
        assert isinstance(stays, fx.Node)
        if dag.writes:  # what follows may write into the sum, which is now a tensor that others read
            with graph.inserting_before(new[name]):
                stays = graph.call_function(torch.ops.aten.clone.default, (stays,))
        new[name].replace_all_uses_with(stays)
    for name, node in reversed(list(new.items())):
        gone = name in sides or name not in live
        if gone and node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)
    return dag.dead_tensors(sides)
