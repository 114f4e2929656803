"""`OnnxGraph`: an ONNX model with its axes, and how to cut or mask it in milliseconds.

The algebra is the one of the traced PyTorch graph, the rules are those of `hwprune.structure.onnx.rules`. Shape
computations that exporters write out as operators are followed as numbers: what a cut makes of them is compared with
what the operators need, and only what differs is rewritten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from hwprune.structure import branches
from hwprune.structure.axes import Axis, AxisTable
from hwprune.structure.borders import Crossing
from hwprune.structure.branches import Branch, Dag
from hwprune.structure.dim_masks import DimMasks
from hwprune.structure.dims import BoolArray
from hwprune.structure.onnx.flatten import FLOATS, captured, flatten, without_graph
from hwprune.structure.onnx.rewrite import Rewrite
from hwprune.structure.onnx.values import Array
from hwprune.structure.onnx.walk import Walk
from hwprune.structure.scope import Value


class OnnxGraph:
    """An analysed ONNX model; never changes.

    Attributes:
        model: the flat form that cuts are made from: functions inlined, Constant nodes turned into initializers.
        axes: every axis that an initializer carries.

    Raises:
        UsageError: an opset before 13, or a model that isn't valid ONNX.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        named: Collection[str] = (),
        sizes: Mapping[str, Sequence[int]] | None = None,
        learned: Mapping[str, Sequence[int]] | None = None,
        crossings: Mapping[str, Crossing] | None = None,
    ) -> None:
        """Analyse a model.

        Args:
            named: initializers that stay one tensor even where all their entries are equal (see `flatten`).
            sizes: input name -> shape, for models whose free sizes are free only in name.
            learned: tensor name -> its sizes, with primes for free ones, as runs have shown them where inference does not.
            crossings: tensor behind a border of tokens -> where it crosses.
        """
        self.model = flatten(model, named)
        walk = Walk(self.model, sizes or {}, learned, crossings)
        walk.run()
        self.walk = walk
        self._space = walk.space
        self._dim_masks = DimMasks(walk.space)
        self.table = AxisTable(walk.space, walk.stored)
        self.axes: tuple[Axis, ...] = self.table.axes
        self._branches: tuple[Branch, ...] | None = None
        self._dag: Dag | None = None

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Sides of sums that may be dropped as a whole; found when first asked for."""
        if self._branches is None:
            self._branches = branches.find(self.dag)
        return self._branches

    @property
    def dag(self) -> Dag:
        """The graph as names; made when first asked for."""
        if self._dag is None:
            self._dag = _dag(self.model, self.walk.values)
        return self._dag

    @property
    def unclear(self) -> list[str]:
        """Tensors whose sizes the analysis could not find out."""
        return [name for node in self.model.graph.node for name in node.output if name and self.walk.shape(name) is None]

    def masks_for(self, shapes: Mapping[str, Sequence[BoolArray]]) -> dict[int, BoolArray] | None:
        """Leaf masks from the keep masks of initializers' dims, or None if no leaf masks give exactly these.

        Args:
            shapes: initializer name -> one keep mask a dim.
        """
        masks: dict[int, BoolArray] = {}
        for name, keeps in shapes.items():
            for dim, keep in zip(self.table.parameters[name].dims, keeps, strict=True):
                self.table.project(dim, keep, masks)
        if any(self._space.frozen_number(number) and not mask.all() for number, mask in masks.items()):
            return None
        for name, keeps in shapes.items():
            for dim, keep in zip(self.table.parameters[name].dims, keeps, strict=True):
                if not np.array_equal(self._dim_masks.keep(dim, masks), keep):
                    return None
        return masks

    def cut(self, keeps: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
        """The model with the removed indices physically gone; arguments and errors as `AxisGraph.cut`."""
        return self.cut_leaves(self.table.masks(keeps))

    def cut_leaves(
        self, masks: Mapping[int, BoolArray], tensors: Mapping[str, Array] | None = None, drop: Sequence[Branch] = ()
    ) -> onnx.ModelProto:
        """Cut by leaf masks.

        Args:
            drop: branches that go.
            tensors: initializer name -> its new contents, already in the new shape; the others are selected from.
        """
        counts = {number: int(mask.sum()) for number, mask in masks.items()}
        rewrite = Rewrite(self.walk, lambda dim: self._dim_masks.kept(dim, counts))
        nodes = rewrite.nodes() if masks else [*self.model.graph.node]
        nodes = _without(nodes, drop)
        given = tensors or {}
        initializers = []
        for item in self.model.graph.initializer:
            value = self.table.parameters.get(item.name)
            if item.name in given:
                initializers.append(numpy_helper.from_array(np.asarray(given[item.name], order="C"), item.name))
            elif value is None or not (touched := self.table.touched(value, masks)):
                initializers.append(item)
            else:
                array = numpy_helper.to_array(item)
                for position, keep in touched:
                    array = array.compress(keep, axis=position)
                initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), item.name))
        return self._assemble(nodes, [*initializers, *rewrite.constants])

    def mask(self, keeps: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
        """The model in its original shapes with the removed slices of every initializer zeroed."""
        masks = self.table.masks(keeps)
        initializers = []
        for item in self.model.graph.initializer:
            value = self.table.parameters.get(item.name)
            touched = self.table.touched(value, masks) if value is not None else []
            if touched:
                array = numpy_helper.to_array(item).copy()
                for position, keep in touched:
                    np.moveaxis(array, position, 0)[~keep] = 0
                item = numpy_helper.from_array(array, item.name)  # noqa: PLW2901 - the masked form of the same tensor
            initializers.append(item)
        return self._assemble([*self.model.graph.node], initializers)

    def _assemble(self, nodes: Sequence[onnx.NodeProto], initializers: Sequence[TensorProto]) -> onnx.ModelProto:
        """A model of these nodes and initializers, without what nothing reads."""
        graph = self.model.graph
        needed = {item.name for item in graph.output}
        kept = []
        for node in reversed(nodes):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(name for name in node.input if name)
                needed.update(captured(node))
        trimmed = helper.make_graph(
            kept[::-1], graph.name, list(graph.input), list(graph.output), [item for item in initializers if item.name in needed]
        )
        model = onnx.ModelProto()
        model.CopyFrom(without_graph(self.model))
        model.graph.CopyFrom(trimmed)
        model.graph.doc_string = graph.doc_string
        return model


def _without(nodes: Sequence[onnx.NodeProto], drop: Sequence[Branch]) -> list[onnx.NodeProto]:
    """The nodes with each dropped branch's sum turned into its other operand."""
    sides = {branch.name: branch.side for branch in drop}
    result = []
    for node in nodes:
        if node.output and node.output[0] in sides:
            stays = node.input[1 - sides[node.output[0]]]
            result.append(helper.make_node("Identity", [stays], [node.output[0]], name=node.name))
        else:
            result.append(node)
    return result


def _dag(model: onnx.ModelProto, values: Mapping[str, Value | None]) -> Dag:
    """The graph as names, for finding branches."""
    nodes: dict[str, list[str]] = {item.name: [] for item in (*model.graph.input, *model.graph.initializer)}
    tensors = {item.name: item.name for item in model.graph.initializer}
    weights = {item.name for item in model.graph.initializer if len(item.dims) > 1 and item.data_type in FLOATS}
    data = {item.name for item in model.graph.input if item.type.tensor_type.elem_type in FLOATS}
    sums: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        inputs = [name for name in node.input if name] + sorted(captured(node))
        for name in node.output:
            nodes[name] = inputs
        value = values.get(node.output[0])
        if value is None:
            continue
        if not all(name in tensors for name in inputs):
            data.add(node.output[0])
        if node.op_type == "Add":
            sides = [values.get(name) for name in node.input]
            same = all(side is not None and [d.size for d in side.dims] == [d.size for d in value.dims] for side in sides)
            if same and all(name in data for name in node.input):
                sums[node.output[0]] = (node.input[0], node.input[1])
    return Dag(nodes, [item.name for item in model.graph.output], tensors, frozenset(weights), sums, frozenset(data), {})
