"""Methods: what to keep in a unit, at several levels, and the weights that stay.

A criterion only scores. Methods such as SparseGPT and OBS choose masks and change the kept weights together, so
the interface that everything else uses is `Method.solve`; score-only criteria are wrapped once, by `Scored`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from hwprune import criteria, patterns
from hwprune.criteria import Criterion, Statistics
from hwprune.errors import UnknownNameError, UsageError
from hwprune.patterns import Pattern
from hwprune.structure.units import Unit


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """A unit pruned one way.

    Attributes:
        keep: True = stays; (axis.size,) for an axis, the weight's shape for a matrix.
        weights: parameter name -> new value, for methods that change what stays; empty: the kept weights are as they were.
        error: fraction of the unit's squared weight norm that is removed, for methods that know no data.
    """

    unit: str
    pattern: str
    sparsity: float
    method: str
    keep: torch.Tensor
    error: float
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Method(abc.ABC):
    """Solves a unit for several levels at once, because a greedy trace gives them all in one pass."""

    name: str

    @abc.abstractmethod
    def solve(
        self, unit: Unit, statistics: Statistics | None, pattern: Pattern, levels: Sequence[float | None]
    ) -> tuple[Option, ...]:
        """One option a level; a level is a sparsity, or None for a pattern that fixes it."""


@final
class Scored(Method):
    """Score once, then keep the best at each level."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.name = criterion.name

    def solve(
        self, unit: Unit, statistics: Statistics | None, pattern: Pattern, levels: Sequence[float | None]
    ) -> tuple[Option, ...]:
        if unit.axis is not None:
            scores = self.criterion.axis_scores(unit.slices, statistics)
            energy = torch.stack([part.detach().double().square().sum(dim=1) for part in unit.slices]).sum(dim=0)
        else:
            (weight,) = unit.weights.values()
            scores = self.criterion.scores(weight, statistics)
            energy = weight.detach().double().square()
        total = max(float(energy.sum()), torch.finfo(torch.float64).tiny)
        options = []
        for level in levels:
            keep = pattern.keep_mask(scores.cpu(), level)
            sparsity = 1 - float(keep.float().mean())
            error = float(energy.cpu()[~keep].sum()) / total
            options.append(Option(unit.name, pattern.name, sparsity, self.name, keep, error))
        return tuple(options)


def get(name: str) -> Method:
    """The method of that name: every criterion is one. Raises `UnknownNameError`."""
    if name not in criteria.CRITERIA:
        raise UnknownNameError("method", name, criteria.CRITERIA)
    return Scored(criteria.CRITERIA[name])


def solve(
    unit: Unit,
    statistics: Statistics | None = None,
    method: str | Method = "l2",
    levels: Sequence[float | None] = (0.5,),
    pattern: str | Pattern | None = None,
) -> tuple[Option, ...]:
    """Options for one unit, one a level.

    Args:
        unit: from `hwprune.units`.
        statistics: what the method's criterion needs; None for those that need nothing.
        method: a name of the criteria table, or a `Method`.
        levels: sparsities, or None for a pattern that fixes its own.
        pattern: default: the axis's role, or ``unstructured`` for a matrix.
    """
    if pattern is None:
        pattern = unit.role if unit.axis is not None else "unstructured"
    chosen = patterns.get(pattern) if isinstance(pattern, str) else pattern
    if patterns.is_axis(chosen.name) != (unit.axis is not None):
        raise UsageError(f"pattern {chosen.name} does not fit unit {unit.name}, whose role is {unit.role}")
    return (get(method) if isinstance(method, str) else method).solve(unit, statistics, chosen, levels)
