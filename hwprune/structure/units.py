"""Prune units: what a search decides on. An axis with its role, or a weight matrix for a mask pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hwprune.errors import UnknownNameError
from hwprune.structure.axes import Axis
from hwprune.structure.branches import Branch
from hwprune.structure.graph import Matrix, ModelGraph


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One thing to decide on.

    Attributes:
        name: ``parameter:dim`` for an axis, ``parameter`` for a matrix, the sum's node for a branch.
        role: the axis's role, ``matrix`` or ``branch``.
        size: indices of the axis, weights of the matrix, parameters that only the branch reads.
        weights: parameter name -> the dense tensor, for everything that scores are computed from; a matrix as (out, in, ...).
        axis, matrix, branch: the one that it is.
    """

    name: str
    role: str
    size: int
    weights: Mapping[str, torch.Tensor]
    slices: tuple[torch.Tensor, ...]
    axis: Axis | None = None
    matrix: Matrix | None = None
    branch: Branch | None = None


def units(graph: ModelGraph) -> dict[str, Unit]:
    """Every unit of the graph by name, in graph order: axes that may be cut, then matrices, then branches."""
    parameters = dict(graph.module.named_parameters(remove_duplicate=False))
    found: dict[str, Unit] = {}
    for axis in graph.axes:
        if axis.frozen is None:
            producers = _producers(graph, axis, parameters)
            slices = tuple(_slices(graph, axis, name, dim, parameters[name]) for name, dim in producers)
            weights = {name: parameters[name] for name, _ in producers}
            found[axis.name] = Unit(axis.name, axis.role, axis.size, weights, slices, axis=axis)
    for matrix in graph.matrices:
        found[matrix.parameter] = matrix_unit(matrix, parameters[matrix.parameter])
    for branch in graph.branches:
        weights = {name: parameters[name] for name in branch.parameters if name in parameters}
        found[branch.name] = Unit(branch.name, "branch", sum(w.numel() for w in weights.values()), weights, (), branch=branch)
    return found


def matrix_unit(matrix: Matrix, weight: torch.Tensor) -> Unit:
    """The unit of a weight in the state that it is in (whole, or cut already)."""
    return Unit(matrix.parameter, "matrix", weight.numel(), {matrix.parameter: matrix.rows(weight)}, (), matrix=matrix)


def ties(table: Mapping[str, Unit]) -> dict[str, str]:
    """Unit -> the first unit that looks like it: same role, size and shapes. Repeated blocks can share decisions so."""
    first: dict[Any, str] = {}
    found = {}
    for unit in table.values():
        if unit.axis is not None:
            shapes = sorted(
                (tuple(w.shape), dim) for name, dim in unit.axis.members if (w := table_weights(table, name)) is not None
            )
            key: Any = (unit.role, unit.size, tuple(shapes), len(unit.axis.members))
        else:
            key = (unit.role, unit.size, tuple(sorted(tuple(w.shape) for w in unit.weights.values())))
        found[unit.name] = first.setdefault(key, unit.name)
    return found


def table_weights(table: Mapping[str, Unit], name: str) -> torch.Tensor | None:
    """The matrix of that name, if it is a unit."""
    unit = table.get(name)
    return unit.weights[name] if unit is not None and unit.matrix is not None else None


def get(table: Mapping[str, Unit], name: str) -> Unit:
    """The unit of that name. Raises `UnknownNameError`."""
    if name not in table:
        raise UnknownNameError("unit", name, table)
    return table[name]


def _producers(graph: ModelGraph, axis: Axis, parameters: Mapping[str, torch.Tensor]) -> list[tuple[str, int]]:
    """The layers whose outputs the axis is; without any (an embedding's width), every parameter with two dims or more."""
    matrices = {matrix.parameter: matrix for matrix in graph.matrices}
    members = [(name, dim) for name, dim in axis.members if name in parameters]
    made = [(name, dim) for name, dim in members if name in matrices and dim == matrices[name].out_dim]
    return made or [(name, dim) for name, dim in members if parameters[name].ndim > 1] or members


def _slices(graph: ModelGraph, axis: Axis, name: str, dim: int, weight: torch.Tensor) -> torch.Tensor:
    """Row i = the weights that index i of the axis owns in this parameter; shape (axis.size, k)."""
    owner = torch.from_numpy(graph.slices(axis, name, dim))
    order = torch.argsort(owner, stable=True)
    order = order[int((owner < 0).sum()) :]  # positions of the dim that belong to no index (a concat's other parts)
    rows = weight.detach().movedim(dim, 0).index_select(0, order.to(weight.device))
    return rows.reshape(axis.size, -1)
