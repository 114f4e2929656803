"""Fewer tokens in a traced PyTorch graph: the borders, the sizes behind them, and the copy of the graph that has them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from hwprune.errors import UsageError
from hwprune.structure import borders as token_borders
from hwprune.structure.borders import FORMS, MERGE, Border, Crossing, TokenAxis
from hwprune.structure.dims import Dim, Leaf, Space
from hwprune.structure.scope import Value
from hwprune.structure.torch.rebuilding import with_tensors
from hwprune.structure.torch.rules.table import read_argument
from hwprune.structure.torch.token_nodes import reduce_tokens

if TYPE_CHECKING:
    from hwprune.structure.torch.graph import AxisGraph

CROSSING = "crossing"
"""Key of a node's meta: it is where a tensor crosses a border."""
MOST_PICKED = 16
"""First tokens that are class tokens or registers; whoever picks more picks something else."""
_SDPA = torch.ops.aten.scaled_dot_product_attention.default
_SOFTMAX = (torch.ops.aten.softmax.int, torch.ops.aten._softmax.default)


@dataclass(frozen=True, eq=False)
class TokenGraph:
    """A graph with borders.

    Attributes:
        graph: the one without.
        dims: axis name -> the leaf of the tokens behind it, for all of ``chain``.
        axes: what can be reduced, in the model's order; both forms of a border follow one another.
        reason: why there are none, or why some are missing.
        bordered: the graph with its borders, in which they do nothing.
        borders: by number.
        chain: ``axes``, and between them the forms that can't be used.
    """

    graph: AxisGraph
    dims: Mapping[str, Leaf]
    axes: tuple[TokenAxis, ...]
    reason: str | None = None
    bordered: AxisGraph | None = None
    borders: tuple[Border, ...] = ()
    chain: tuple[TokenAxis, ...] = ()

    def masks(self, kept: Mapping[str, int]) -> dict[int, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Leaf masks with as many tokens as are left behind each border; which ones says nothing."""
        now = token_borders.counts(self.chain, kept)
        return {self.dims[name].number: np.arange(self.dims[name].size) < count for name, count in now.items()}

    def counted(self, keeps: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """How many tokens stay. Raises `UsageError` with every fault."""
        sizes = {axis.name: axis.size for axis in self.axes}
        faults = [
            f"{name}: the keep mask must be a bool tensor of shape ({sizes[name]},) in which at least one entry is True"
            for name, keep in keeps.items()
            if keep.dtype != torch.bool or keep.shape != (sizes[name],) or not bool(keep.any())
        ]
        if faults:
            raise UsageError("these tokens can't be made fewer so:", faults)
        return {name: int(keep.sum()) for name, keep in keeps.items()}

    def alive(self, kept: Mapping[str, int], drop: Collection[str]) -> dict[str, int]:
        """Without the reductions whose attention goes with a dropped branch."""
        gone = self.dead(drop)
        return {name: count for name, count in kept.items() if name not in gone}

    def dead(self, drop: Collection[str]) -> set[str]:
        """Axes whose attention is gone once these branches are."""
        if not drop or self.bordered is None:
            return set()
        live = self.bordered.live(drop)
        return {axis.name for axis in self.axes if axis.attention not in live}

    def finish(self, kept: Mapping[str, int]) -> Callable[[fx.Graph, Mapping[str, fx.Node], Callable[[Dim], int]], None]:
        """What turns the borders of a cut graph into what reduces the tokens, or into nothing."""
        reductions = token_borders.reductions(self.chain, dict(enumerate(self.borders)), kept)

        def lower(graph: fx.Graph, nodes: Mapping[str, fx.Node], _size: Callable[[Dim], int]) -> None:
            assert self.bordered is not None
            crossings: dict[tuple[str, str], list[tuple[fx.Node, tuple[int, ...], bool]]] = {}
            for old in self.bordered.module.graph.nodes:
                if (crossing := old.meta.get(CROSSING)) is not None and old.name in nodes:
                    entry = (nodes[old.name], crossing.dims, crossing.main)
                    crossings.setdefault((crossing.border, crossing.form), []).append(entry)
            for axis in self.chain:
                if axis.name in reductions:
                    border = self.borders[axis.place]
                    reduce_tokens(graph, nodes[border.attention], reductions[axis.name], crossings[border.main, axis.form])
            for entries in crossings.values():
                for node, *_ in entries:
                    if not node._erased:
                        source = node.args[0]
                        assert isinstance(source, fx.Node)
                        node.replace_all_uses_with(source)
                        graph.erase_node(node)

        return lower


def borders(graph: AxisGraph, space: Space, values: Mapping[fx.Node, Any]) -> list[Border] | str:
    """The borders of a traced model, or why there are none."""
    dag = graph.dag
    if dag.writes:
        return "the model writes into tensors"
    scores: dict[str, Value] = {}
    dims: dict[str, Value | None] = {}
    for node in graph.module.graph.nodes:
        value = values.get(node)
        if isinstance(value, Value):
            dims[node.name] = value
        elif isinstance(node.meta.get("val"), (torch.Tensor, list, tuple)):
            dims[node.name] = None
    for node in graph.module.graph.nodes:
        query, key = (values.get(node.args[i]) if len(node.args) > i else None for i in (0, 1))
        if node.target is _SDPA and isinstance(query, Value) and isinstance(key, Value) and len(query) == 4:
            if not read_argument(node, "is_causal") and not read_argument(node, "enable_gqa"):
                scores[node.name] = Value((query[0], query[1], query[-2], key[-2]), (False,) * 4)
        elif node.target in _SOFTMAX and isinstance(query, Value) and len(query) == 4 and node.args[1] in (-1, 3):
            scores[node.name] = query
    if not scores:
        return "no attention over (batch, heads, tokens, tokens) was found"
    inputs = {node.name for node in graph.module.graph.nodes if node.op == "placeholder"}
    found = token_borders.find(dag, inputs, dims, scores, space)
    if not found:
        return "behind no attention one tensor (batch, tokens, features) alone goes on"
    picked = _picked(graph.module, values, space)
    made = []
    for border in found:
        value = dims[border.main]
        assert value is not None  # of a border's own tensor
        made.append(border.with_fixed(picked.get(space.resolve(value[1]), 0)))
    return made


def _picked(module: fx.GraphModule, values: Mapping[fx.Node, Any], space: Space) -> dict[Dim, int]:
    """Dim -> how many of its first indices are picked by number somewhere."""
    found: dict[Dim, int] = {}
    for node in module.graph.nodes:
        value = values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if not isinstance(value, Value):
            continue
        count = 0
        if node.target is torch.ops.aten.select.int and isinstance(node.args[2], int):
            count = node.args[2] + 1
        elif node.target is torch.ops.aten.slice.Tensor:
            start, end = read_argument(node, "start") or 0, read_argument(node, "end")
            if isinstance(start, int) and (end is None or isinstance(end, int)):
                count = start or (end or 0)  # the first ones, or all but the first ones
        elif node.target is torch.ops.aten.split_with_sizes.default and isinstance(node.args[1][0], int):
            count = node.args[1][0]
        if count > 0:
            dim = space.resolve(value[read_argument(node, "dim")])
            if count <= min(MOST_PICKED, dim.size - 2):
                found[dim] = max(found.get(dim, 0), count)
    return found


def bordered(module: fx.GraphModule, found: Sequence[Border]) -> fx.GraphModule:
    """A copy of the graph in which every tensor that crosses a border goes through a node of each form, which does nothing."""
    graph = fx.Graph()
    graph._codegen = module.graph._codegen
    new: dict[fx.Node, fx.Node] = {}
    by_place = {border.last: border for border in found}
    names = {node.name: node for node in module.graph.nodes}
    taken = set(names)
    for place, old in enumerate(module.graph.nodes):
        new[old] = graph.node_copy(old, lambda node: new[node])
        new[old].meta = dict(old.meta)
        assert new[old].name == old.name
        if (border := by_place.get(place)) is None:
            continue
        for form in FORMS:
            for name, dims, main in ((border.main, (1,), True), *((other, dims, False) for other, dims in border.others)):
                source = names[name]
                node = graph.create_node(
                    "call_function", torch.ops.aten.alias.default, (new[source],), name=f"{border.main}_{form}_{name}"
                )
                assert node.name not in taken
                rank = source.meta["val"].ndim
                crossing = Crossing(border.main, form, dims, border.tokens, border.fixed, main, rank)
                node.meta = {**source.meta, CROSSING: crossing}
                new[source] = node
    # fx copies only what the graph reads; the rest belongs to the model, too, and to its state dict.
    made = with_tensors(fx.GraphModule(module, graph, class_name=type(module).__name__), module)
    made.meta |= {**module.meta, "free_length": False}
    made.train(module.training)
    return made


def token_graph(
    graph: AxisGraph,
    second: AxisGraph,
    found: Sequence[Border],
    dims: Mapping[tuple[str, str], Dim],
) -> TokenGraph:
    """What of the borders can be used: tokens that reach an output, or a weight, or are picked by number, must all stay."""
    if _free(graph) != _free(second):
        before = {axis.name for axis in graph.axes if axis.frozen is None}
        reasons = [axis.frozen for axis in second.axes if axis.frozen and axis.name in before]
        return TokenGraph(graph, {}, (), next(iter(reasons), "a weight spans the tokens"))
    space = second.space
    chain: list[TokenAxis] = []
    leaves: dict[str, Leaf] = {}
    reason: str | None = None
    carried = {leaf for value in second.parameter_dims.values() for dim in value.dims for leaf in space.leaves(dim)}
    usable = True
    for place, border in reversed(list(enumerate(found))):  # what can't be less at one border can't at those before it
        for form in reversed(FORMS):
            tokens = space.resolve(dims[border.main, form])
            free = [leaf for leaf in space.leaves(tokens) if leaf.size > 1]
            if len(free) != 1 or token_borders.leading(tokens) != border.fixed or free[0].size != border.free:
                reason, usable = "the tokens are divided, or picked by number", False
            elif (frozen := space.frozen(free[0])) is not None or free[0] in carried:
                reason, usable = frozen or "a weight spans the tokens", False
            if not usable:
                break
            name = f"{border.main}:{form}"
            chain.append(TokenAxis(name, form, border.free, border.attention, place, _label(border)))
            leaves[name] = free[0]
        if not usable:
            break
    chain.reverse()
    # Behind a mask padding would be merged with what is none.
    axes = tuple(axis for axis in chain if axis.form != MERGE or not found[axis.place].others)
    return TokenGraph(graph, leaves, axes, reason, second, tuple(found), tuple(chain))


def _free(graph: AxisGraph) -> list[tuple[str, int, tuple[tuple[str, int], ...]]]:
    return [(axis.name, axis.size, axis.members) for axis in graph.axes if axis.frozen is None]


def _label(border: Border) -> str:
    """The module of the weights between the attention and the border."""
    common: list[str] = []
    for parts in zip(*(name.split(".") for name in sorted(border.near)), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common).removesuffix(".weight") or border.main
