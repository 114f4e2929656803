"""Fewer tokens in an ONNX graph: its borders, matched with those of the PyTorch graph, and the sizes behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from hwprune.structure import borders as token_borders
from hwprune.structure.borders import FORMS, Border, Crossing, TokenAxis
from hwprune.structure.branches import Branch
from hwprune.structure.dims import BoolArray, Leaf
from hwprune.structure.onnx.flatten import captured
from hwprune.structure.onnx.graph import OnnxGraph
from hwprune.structure.onnx.token_operators import reduce_tokens
from hwprune.structure.onnx.values import Array, attributes

DOMAIN = "hwprune.tokens"
"""Domain of the nodes at which tensors cross a border; no file has them."""


@dataclass(frozen=True, eq=False)
class OnnxTokens:
    """An ONNX graph with the borders of a traced model.

    Attributes:
        graph: with its borders, in which they do nothing.
        chain: axes of the traced model, in its order.
        borders: number of a border in the traced model -> the border here.
        crossings: tensor behind a border -> where it crosses.
    """

    graph: OnnxGraph
    chain: tuple[TokenAxis, ...]
    borders: Mapping[int, Border]
    crossings: Mapping[str, Crossing]

    def model(
        self,
        kept: Mapping[str, int],
        shapes: Mapping[str, Sequence[BoolArray]],
        tensors: Mapping[str, Array],
        drop: Sequence[Branch],
    ) -> onnx.ModelProto | None:
        """The model with fewer tokens, cut besides; None if no leaf masks give these shapes.

        Args:
            kept: token axis -> how many of its tokens stay.
            shapes, tensors, drop: as for `OnnxGraph.masks_for` and `OnnxGraph.cut_leaves`.
        """
        masks = self.graph.masks_for(shapes)
        if masks is None:
            return None
        now = token_borders.counts(self.chain, kept)
        for axis in self.chain:
            leaf = self._leaf(axis)
            if leaf is None:
                return None
            if axis.name in now:
                masks[leaf.number] = np.arange(leaf.size) < now[axis.name]
        model = self.graph.cut_leaves(masks, tensors, drop)
        return self._lowered(model, kept)

    def _leaf(self, axis: TokenAxis) -> Leaf | None:
        """The tokens behind an axis; None if they are tied to what can't be cut."""
        space = self.graph.walk.space
        dim = self.graph.walk.token_dims.get((self.borders[axis.place].main, axis.form))
        leaves = [leaf for leaf in space.leaves(dim) if leaf.size > 1] if dim is not None else []
        if len(leaves) != 1 or leaves[0].size != axis.size or space.frozen(leaves[0]):
            return None
        stored = {leaf for value in self.graph.walk.stored.values() for part in value.dims for leaf in space.leaves(part)}
        return None if leaves[0] in stored else leaves[0]

    def _lowered(self, model: onnx.ModelProto, kept: Mapping[str, int]) -> onnx.ModelProto:
        """The crossings replaced by what reduces the tokens, or by nothing."""
        made_here = token_borders.reductions(self.chain, self.borders, kept)
        found = {
            (self.borders[axis.place].main, axis.form): (made_here[axis.name], self.borders[axis.place].attention)
            for axis in self.chain
            if axis.name in made_here
        }
        nodes = list(model.graph.node)
        del model.graph.node[:]
        done: set[tuple[str, str]] = set()
        opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
        for node in nodes:
            if node.domain != DOMAIN:
                model.graph.node.append(node)
                continue
            crossing = self.crossings[node.output[0]]
            key = (crossing.border, crossing.form)
            if key not in found:
                model.graph.node.append(helper.make_node("Identity", [node.input[0]], [node.output[0]], name=node.name))
            else:
                names = (found[key][1], node.input[0], node.output[0])
                kind = self.graph.walk.types[crossing.border].tensor_type.elem_type
                made, constants = reduce_tokens(found[key][0], crossing, *names, opset, kind, first=key not in done)
                done.add(key)
                model.graph.node.extend(made)
                model.graph.initializer.extend(constants)
        return model


def build(
    dense: OnnxGraph,
    chain: Sequence[TokenAxis],
    borders: Sequence[Border],
    names: Mapping[str, str],
    sizes: Mapping[str, Sequence[int]],
) -> OnnxTokens | str:
    """The borders of an ONNX model, or why it has not those of the traced one.

    Args:
        dense: the model as it is.
        chain, borders: of the traced model.
        names: parameter of the traced model -> initializer.
        sizes: input -> its shape; sizes that the model leaves free, but for the first, are these.
    """
    model = onnx.ModelProto()
    model.CopyFrom(dense.model)
    for item in model.graph.input:
        for place, dim in enumerate(item.type.tensor_type.shape.dim):
            if place and item.name in sizes and not dim.dim_value:
                dim.dim_value = int(sizes[item.name][place])
    named = set(names.values())
    fixed = OnnxGraph(model, named) if model != dense.model else dense
    here = _borders(fixed)
    common = named & fixed.dag.weights
    matched: dict[int, Border] = {}
    for place in sorted({axis.place for axis in chain}):
        there = borders[place]
        wanted = {names[name] for name in there.before if name in names} & common
        same = [border for border in here if border.before & common == wanted and border.tokens == there.tokens]
        if len(same) != 1 or len(same[0].others) != len(there.others):
            return f"the ONNX model has {len(same)} places like {there.main}"
        matched[place] = same[0].with_fixed(there.fixed)
    crossings: dict[str, Crossing] = {}
    ranks = {name: len(value) for name, value in fixed.walk.values.items() if value is not None}
    bordered = _bordered(fixed.model, [matched[place] for place in sorted(matched)], ranks, crossings)
    if bordered is None:
        return "tokens are read inside a nested graph"
    return OnnxTokens(OnnxGraph(bordered, named, crossings=crossings), tuple(chain), matched, crossings)


def _borders(graph: OnnxGraph) -> list[Border]:
    scores = {}
    for node in graph.model.graph.node:
        value = graph.walk.values.get(node.output[0]) if node.output else None
        if node.op_type == "Softmax" and value is not None and len(value) == 4 and attributes(node).get("axis", -1) in (-1, 3):
            scores[node.output[0]] = value
    inputs = {item.name for item in graph.model.graph.input}
    values = {name: value for name, value in graph.walk.values.items() if name not in graph.walk.known}
    for node in graph.model.graph.node:
        for name in node.output:
            if name and name not in graph.walk.known:
                values.setdefault(name, None)
    return token_borders.find(graph.dag, inputs, values, scores, graph.walk.space)


def _bordered(
    model: onnx.ModelProto, found: Sequence[Border], ranks: Mapping[str, int], crossings: dict[str, Crossing]
) -> onnx.ModelProto | None:
    """A copy in which what crosses a border goes through nodes that do nothing; enters what they are into ``crossings``."""
    behind = {border.last_name: border for border in found}
    renamed: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []

    def close(border: Border) -> None:
        for form in FORMS:
            for name, dims, main in ((border.main, (1,), True), *((other, places, False) for other, places in border.others)):
                output = f"{border.main}/{form}/{name}"
                nodes.append(helper.make_node("Border", [renamed.get(name, name)], [output], name=output, domain=DOMAIN))
                crossings[output] = Crossing(border.main, form, dims, border.tokens, border.fixed, main, ranks[name])
                renamed[name] = output

    for node in model.graph.node:
        if renamed.keys() & set(captured(node)):
            return None
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(node.input):
            copy.input[place] = renamed.get(name, name)
        nodes.append(copy)
        for name in node.output:
            if name in behind:
                close(behind[name])
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made
