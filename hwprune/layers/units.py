"""Prune units: what a search decides on. An axis with its role, or a weight matrix for a mask pattern."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from hwprune.errors import UnknownNameError
from hwprune.layers import layer as layer_table
from hwprune.layers.layer import Layer
from hwprune.layers.part import MAKES, OTHER, READS, SCALES, Part, producers
from hwprune.structure.axes import Axis
from hwprune.structure.borders import TokenAxis
from hwprune.structure.branches import Branch
from hwprune.structure.model_graph import Matrix, ModelGraph


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One thing to decide on.

    Attributes:
        name: ``parameter:dim`` for an axis, ``parameter`` for a matrix, the sum's node for a branch, ``NODE:token`` or
            ``NODE:merge`` for tokens.
        role: the axis's role, ``matrix``, ``branch``, ``token`` or ``merge``.
        size: indices of the axis, weights of the matrix, parameters that only the branch reads, tokens that may go.
        weights: parameter name -> the dense tensor, for everything that scores are computed from; a matrix as (out, in, ...).
        parts: everything that owns a slice of the axis; of a matrix the weight itself.
        axis, matrix, branch, tokens: the one that it is.
    """

    name: str
    role: str
    size: int
    weights: Mapping[str, torch.Tensor]
    parts: tuple[Part, ...]
    axis: Axis | None = None
    matrix: Matrix | None = None
    branch: Branch | None = None
    tokens: TokenAxis | None = None


def units(graph: ModelGraph) -> dict[str, Unit]:
    """Every unit of the graph by name, in graph order: axes that may be cut, then matrices, then branches, then tokens."""
    parameters = dict(graph.module.named_parameters(remove_duplicate=False))
    layers = layer_table.find(graph.module, graph.matrices)
    scales = _scales(graph)
    table: dict[str, Unit] = {}
    for axis in graph.axes:
        if axis.frozen is None:
            parts = tuple(
                _part(graph, axis, name, dim, parameters[name], layers, scales)
                for name, dim in axis.members
                if name in parameters
            )
            if parts:
                weights = {part.parameter: part.tensor for part in producers(parts)}
                table[axis.name] = Unit(axis.name, axis.role, axis.size, weights, parts, axis=axis)
    tables = _embedded(graph)
    for matrix in graph.matrices:
        if id(parameters[matrix.parameter]) in tables:  # as a table its rows are no sums of products: zeros there forget words
            continue
        layer = layers.get(matrix.parameter)
        table[matrix.parameter] = matrix_unit(matrix, parameters[matrix.parameter], centred=layer is not None and layer.movable)
    for branch in graph.branches:
        weights = {name: parameters[name] for name in branch.parameters if name in parameters}
        table[branch.name] = Unit(branch.name, "branch", sum(w.numel() for w in weights.values()), weights, (), branch=branch)
    for tokens in graph.token_axes:
        table[tokens.name] = Unit(tokens.name, tokens.form, tokens.size, {}, (), tokens=tokens)
    return table


def matrix_unit(matrix: Matrix, weight: torch.Tensor, *, centred: bool = False, groups: int | None = None) -> Unit:
    """The unit of a weight in the state that it is in (whole, or cut already).

    Args:
        centred: can a constant be added to the layer's outputs?
        groups: those left after a cut.
    """
    rows = matrix.rows(weight)
    groups = matrix.groups if groups is None else groups
    part = Part(matrix.parameter, READS, rows, 1, torch.arange(rows.shape[1])[:, None], groups, centred)
    return Unit(matrix.parameter, "matrix", weight.numel(), {matrix.parameter: rows}, (part,), matrix=matrix)


def ties(table: Mapping[str, Unit]) -> dict[str, str]:
    """Unit -> the first unit that looks like it: same role, size and shapes. Repeated blocks can share decisions so."""
    first: dict[Any, str] = {}
    tied = {}
    for unit in table.values():
        if unit.axis is not None:
            shapes = sorted(
                (tuple(w.shape), dim) for name, dim in unit.axis.members if (w := table_weights(table, name)) is not None
            )
            key: Any = (unit.role, unit.size, tuple(shapes), len(unit.axis.members))
        else:
            key = (unit.role, unit.size, tuple(sorted(tuple(w.shape) for w in unit.weights.values())))
        tied[unit.name] = first.setdefault(key, unit.name)
    return tied


def table_weights(table: Mapping[str, Unit], name: str) -> torch.Tensor | None:
    """The matrix of that name, if it is a unit."""
    unit = table.get(name)
    return unit.weights[name] if unit is not None and unit.matrix is not None else None


def get(table: Mapping[str, Unit], name: str) -> Unit:
    """The unit of that name. Raises `UnknownNameError`."""
    if name not in table:
        raise UnknownNameError("unit", name, table)
    return table[name]


def _part(
    graph: ModelGraph,
    axis: Axis,
    name: str,
    dim: int,
    tensor: torch.Tensor,
    layers: Mapping[str, Layer],
    scales: Collection[str],
) -> Part:
    """The part of one parameter that the axis owns."""
    owner = torch.from_numpy(graph.slices(axis, name, dim))
    order = torch.argsort(owner, stable=True)
    # Positions of the dim that belong to no index (a concat's other parts) stand in front.
    positions = order[int((owner < 0).sum()) :].reshape(axis.size, -1)
    matrix = next((candidate for candidate in graph.matrices if candidate.parameter == name), None)
    if matrix is None:
        return Part(name, SCALES if name in scales else OTHER, tensor, dim, positions)
    makes = dim == matrix.out_dim
    layer = layers.get(name)
    # A weight that is also used otherwise (tied to an embedding) is no layer that could be solved for.
    kind = MAKES if makes else READS if layer is not None else OTHER
    row_dim = 1 - dim if matrix.transposed else dim
    centred = layer is not None and layer.movable
    return Part(name, kind, matrix.rows(tensor), row_dim, positions, matrix.groups, centred)


_NORM_SCALE = {
    torch.ops.aten.batch_norm.default: 1,
    torch.ops.aten.instance_norm.default: 1,
    torch.ops.aten.layer_norm.default: 2,
    torch.ops.aten.group_norm.default: 2,
    torch.ops.aten.rms_norm.default: 2,
}
"""Position of the learned scale among the operator's arguments."""


_TABLES = (torch.ops.aten.embedding.default, torch.ops.aten.embedding_bag.default)


def _embedded(graph: ModelGraph) -> set[int]:
    """Identities of the parameters that are looked up by number somewhere, as the embedding that an output layer is tied to."""
    parameters = dict(graph.module.named_parameters(remove_duplicate=False))
    looked_up = [str(node.args[0].target) for node in graph.module.graph.nodes if node.target in _TABLES]
    found = {id(parameters[name]) for name in looked_up if name in parameters}
    whole = [part.weight for part in graph.module.modules() if isinstance(part, (nn.Embedding, nn.EmbeddingBag))]
    return found | {id(weight) for weight in whole}


def _scales(graph: ModelGraph) -> set[str]:
    names = set()
    for node in graph.module.graph.nodes:
        position = _NORM_SCALE.get(node.target)
        scale = node.args[position] if position is not None and len(node.args) > position else None
        if isinstance(scale, fx.Node) and scale.op == "get_attr":
            names.add(str(scale.target))
    return names
