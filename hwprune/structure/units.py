"""Prune units: what a search decides on. An axis with its role, or a weight matrix for a mask pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hwprune.errors import UnknownNameError
from hwprune.structure.axes import Axis
from hwprune.structure.graph import AxisGraph, Matrix


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """One thing to decide on.

    Attributes:
        name: ``parameter:dim`` for an axis, ``parameter`` for a matrix.
        role: the axis's role, or ``matrix``.
        size: indices of the axis, or weights of the matrix.
        weights: parameter name -> the dense tensor, for everything that scores are computed from.
        axis, matrix: the one that it is.
    """

    name: str
    role: str
    size: int
    weights: Mapping[str, torch.Tensor]
    slices: tuple[torch.Tensor, ...]
    axis: Axis | None = None
    matrix: Matrix | None = None


def units(graph: AxisGraph) -> dict[str, Unit]:
    """Every unit of the graph by name, in graph order: axes that may be cut, then matrices."""
    parameters = dict(graph.module.named_parameters(remove_duplicate=False))
    found: dict[str, Unit] = {}
    for axis in graph.axes:
        if axis.frozen is None:
            producers = _producers(graph, axis, parameters)
            slices = tuple(_slices(graph, axis, name, dim, parameters[name]) for name, dim in producers)
            weights = {name: parameters[name] for name, _ in producers}
            found[axis.name] = Unit(axis.name, axis.role, axis.size, weights, slices, axis=axis)
    for matrix in graph.matrices:
        weight = parameters[matrix.parameter]
        found[matrix.parameter] = Unit(matrix.parameter, "matrix", weight.numel(), {matrix.parameter: weight}, (), matrix=matrix)
    return found


def get(table: Mapping[str, Unit], name: str) -> Unit:
    """The unit of that name. Raises `UnknownNameError`."""
    if name not in table:
        raise UnknownNameError("unit", name, table)
    return table[name]


def _producers(graph: AxisGraph, axis: Axis, parameters: Mapping[str, torch.Tensor]) -> list[tuple[str, int]]:
    """The layers whose outputs the axis is; without any (an embedding's width), every parameter with two dims or more."""
    matrices = {matrix.parameter for matrix in graph.matrices}
    members = [(name, dim) for name, dim in axis.members if name in parameters]
    made = [(name, dim) for name, dim in members if name in matrices and dim == 0]
    return made or [(name, dim) for name, dim in members if parameters[name].ndim > 1] or members


def _slices(graph: AxisGraph, axis: Axis, name: str, dim: int, weight: torch.Tensor) -> torch.Tensor:
    """Row i = the weights that index i of the axis owns in this parameter; shape (axis.size, k)."""
    owner = torch.from_numpy(graph.slices(axis, name, dim))
    order = torch.argsort(owner, stable=True)
    order = order[int((owner < 0).sum()) :]  # positions of the dim that belong to no index (a concat's other parts)
    rows = weight.detach().movedim(dim, 0).index_select(0, order.to(weight.device))
    return rows.reshape(axis.size, -1)
