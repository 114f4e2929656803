"""Methods: what to keep in a unit, at several levels, and the weights that stay.

A criterion only scores. SparseGPT and OBS choose masks and change the kept weights together, so the interface that everything
else uses is `Method.solve`; score-only criteria are wrapped once, by `Scored`.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import final

import torch

from hwprune import criteria, patterns
from hwprune.common import plugins
from hwprune.criteria import Criterion
from hwprune.errors import UnknownNameError, UsageError
from hwprune.layers.part import Part, producers, readers
from hwprune.layers.statistics import LayerStatistics
from hwprune.layers.units import Unit
from hwprune.methods import layerwise
from hwprune.methods.layerwise import Solution
from hwprune.patterns import Pattern

Statistics = Mapping[str, LayerStatistics]
"""Layers' statistics by the name of the layer's weight."""


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """A unit pruned one way.

    Attributes:
        keep: True = stays; (axis.size,) for an axis, the weight's shape for a matrix.
        error: what the local solution leaves, as a share of the outputs' variance (mean over the layers that read the axis);
            without statistics, the share of the unit's squared weight norm that is removed.
        solutions: weight's name -> new weights of that layer, if they were asked for.
    """

    unit: str
    pattern: str
    sparsity: float
    method: str
    keep: torch.Tensor
    error: float
    solutions: Mapping[str, Solution] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """New weights by name: (out, kept in / G, *kernel)."""
        return {name: solution.weight for name, solution in self.solutions.items()}


class Method(abc.ABC):
    """Solves a unit for several levels at once, because a greedy trace gives them all in one pass."""

    name: str
    needs: tuple[str, ...] = ()
    """Fields of `LayerStatistics` that choosing what to keep needs."""

    @abc.abstractmethod
    def keeps(self, parts: Sequence[Part], pattern: Pattern, levels: Sequence[float | None]) -> list[torch.Tensor]:
        """A keep mask for each level.

        It is (n,) for an axis of these parts, and has the weight's shape if the pattern masks the one part's weight.

        Raises:
            UsageError: parts or statistics that the method needs are missing.
        """

    @abc.abstractmethod
    def unavailable(self, parts: Sequence[Part], pattern: Pattern) -> str | None:
        """The reason why it can't be used for such a unit, statistics aside; or None."""

    @abc.abstractmethod
    def ranking(self, pattern: Pattern) -> str:
        """Methods of equal ranking give the same masks."""

    @final
    def solve(
        self,
        unit: Unit,
        statistics: Statistics | None,
        pattern: Pattern,
        levels: Sequence[float | None],
        compensation: str = layerwise.NONE,
    ) -> tuple[Option, ...]:
        """One option a level; a level is a sparsity, or None for a pattern that fixes it.

        Args:
            compensation: ``none``, ``obs`` or ``lstsq``: see `layerwise`.
        """
        parts = attach(unit.parts, statistics)
        keeps = self.keeps(parts, pattern, levels)
        solved = solutions(unit, parts, keeps, compensation, pattern)
        errors = _errors(unit, parts, keeps, solved)
        return tuple(
            Option(unit.name, pattern.name, 1 - float(keep.float().mean()), self.name, keep, error, layer_solutions)
            for keep, layer_solutions, error in zip(keeps, solved, errors, strict=True)
        )


@final
class Scored(Method):
    """Score once, then keep the best at each level."""

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.name = criterion.name
        self.needs = criterion.needs

    def keeps(self, parts: Sequence[Part], pattern: Pattern, levels: Sequence[float | None]) -> list[torch.Tensor]:
        if patterns.is_axis(pattern.name):
            scores = self.criterion.axis_scores(parts)
        else:
            scores = self.criterion.scores(parts[0].tensor, parts[0].statistics)
        return [pattern.keep_mask(scores.cpu(), level) for level in levels]

    def unavailable(self, parts: Sequence[Part], pattern: Pattern) -> str | None:
        if patterns.is_axis(pattern.name):
            return self.criterion.unavailable(parts)
        return None if self.criterion.on_weights else f"criterion {self.name} scores whole indices of an axis, not single weights"

    def ranking(self, pattern: Pattern) -> str:
        single = not patterns.is_axis(pattern.name) and pattern.block == (1, 1)
        return self.criterion.ranking if single else self.name


@final
class ObsMethod(Method):
    """Optimal brain surgeon: remove the cheapest, let the others make up for it, go on.

    Axes: whole indices, in all layers that read the axis at once (ZipLM). Matrices: single weights or blocks, each output row
    with its own inverse Hessian (OBC); layers for which that would take more than `layerwise.EXACT_LIMIT` operations take
    SparseGPT's sweep.
    """

    name = "obs"
    needs = ("gram",)

    def keeps(self, parts: Sequence[Part], pattern: Pattern, levels: Sequence[float | None]) -> list[torch.Tensor]:
        if patterns.is_axis(pattern.name):
            return layerwise.axis_keeps(parts, levels)
        return layerwise.exact_keeps(parts[0], pattern, levels)

    def unavailable(self, parts: Sequence[Part], pattern: Pattern) -> str | None:
        if patterns.is_axis(pattern.name) and not readers(parts):
            return "method obs: no linear or convolution layer reads this axis"
        return None

    def ranking(self, pattern: Pattern) -> str:
        return self.name


@final
class SparseGPTMethod(Method):
    """One sweep over the columns that chooses masks from the weights as updated so far."""

    name = "sparsegpt"
    needs = ("gram",)

    def keeps(self, parts: Sequence[Part], pattern: Pattern, levels: Sequence[float | None]) -> list[torch.Tensor]:
        if patterns.is_axis(pattern.name):
            return Scored(criteria.CRITERIA["sparsegpt"]).keeps(parts, pattern, levels)
        return [layerwise.swept_keep(parts[0], pattern, level) for level in levels]

    def unavailable(self, parts: Sequence[Part], pattern: Pattern) -> str | None:
        return criteria.CRITERIA["sparsegpt"].unavailable(parts) if patterns.is_axis(pattern.name) else None

    def ranking(self, pattern: Pattern) -> str:
        return self.name


METHODS: dict[str, Method] = {
    name: {"obs": ObsMethod(), "sparsegpt": SparseGPTMethod()}.get(name) or Scored(criterion)
    for name, criterion in criteria.CRITERIA.items()
}
"""Every criterion is a method; ``obs`` and ``sparsegpt`` are more than their scores."""


def get(name: str) -> Method:
    """The method of that name; a criterion of another package is one too. Raises `UnknownNameError`, `UsageError`."""
    if name in METHODS:
        return METHODS[name]
    if (own := _OWN.get()) is not None and own.name == name:
        return own
    others = plugins.found("hwprune.criteria", criteria.Criterion)
    if name not in others:
        raise UnknownNameError("method", name, [*METHODS, *others])
    return Scored(others[name])


_OWN: ContextVar[Method | None] = ContextVar("own", default=None)


@contextlib.contextmanager
def also(criterion: Criterion) -> Iterator[None]:
    """`get` knows this criterion, too, whose scores are for the units at hand alone."""
    token = _OWN.set(Scored(criterion))
    try:
        yield
    finally:
        _OWN.reset(token)


def solve(
    unit: Unit,
    statistics: Statistics | None = None,
    method: str | Method = "l2",
    levels: Sequence[float | None] = (0.5,),
    pattern: str | Pattern | None = None,
    compensation: str = layerwise.NONE,
) -> tuple[Option, ...]:
    """Options for one unit, one a level.

    Args:
        unit: from `hwprune.Pruner(workload).units`.
        statistics: by layer, for methods and compensations that need them: `hwprune.Pruner(workload).statistics(names)`.
        method: a name of the criteria table, or a `Method`.
        levels: sparsities, or None for a pattern that fixes its own.
        pattern: default: the axis's role, or ``unstructured`` for a matrix.
        compensation: ``none``; ``obs`` or ``lstsq`` for new weights too.

    Raises:
        UsageError: the pattern or method does not fit the unit, or statistics are missing.
        CandidateFailure: a Gram matrix can't be factorised.
    """
    if unit.branch is not None:
        raise UsageError(f"unit {unit.name} is a branch: it is dropped as a whole, there is nothing to solve")
    if pattern is None:
        pattern = unit.role if unit.axis is not None else "unstructured"
    resolved_pattern = patterns.get(pattern) if isinstance(pattern, str) else pattern
    if patterns.is_axis(resolved_pattern.name) != (unit.axis is not None):
        raise UsageError(f"pattern {resolved_pattern.name} does not fit unit {unit.name}, whose role is {unit.role}")
    resolved_method = get(method) if isinstance(method, str) else method
    if reason := resolved_method.unavailable(unit.parts, resolved_pattern):
        raise UsageError(f"unit {unit.name}: {reason}")
    return resolved_method.solve(unit, statistics, resolved_pattern, levels, compensation)


def attach(parts: Sequence[Part], statistics: Statistics | None) -> list[Part]:
    """The parts with the statistics of their layers."""
    if statistics is None:
        return list(parts)
    return [
        dataclasses.replace(part, statistics=statistics[part.parameter])
        if part.statistics is None and part.parameter in statistics
        else part
        for part in parts
    ]


def solutions(
    unit: Unit, parts: Sequence[Part], keeps: Sequence[torch.Tensor], compensation: str, pattern: Pattern | None = None
) -> list[dict[str, Solution]]:
    """New weights of the layers that read an axis, or of a masked matrix, for each keep mask."""
    if compensation == layerwise.NONE:
        return [{} for _ in keeps]
    if unit.axis is None:
        return [{parts[0].parameter: layerwise.masked(parts[0], keep, compensation, pattern)} for keep in keeps]
    solved: list[dict[str, Solution]] = [{} for _ in keeps]
    for part in readers(parts):
        for place, solution in enumerate(layerwise.kept_columns(part, keeps)):
            solved[place][part.parameter] = solution
    return solved


def _errors(
    unit: Unit, parts: Sequence[Part], keeps: Sequence[torch.Tensor], solved: Sequence[Mapping[str, Solution]]
) -> list[float]:
    measurable = [part for part in readers(parts) if part.statistics is not None and part.statistics.covariance is not None]
    if measurable:
        return [
            sum(
                layer_solutions[p.parameter].error
                if p.parameter in layer_solutions
                else layerwise.removal_error(p, keep, of_axis=unit.axis is not None)
                for p in measurable
            )
            / len(measurable)
            for keep, layer_solutions in zip(keeps, solved, strict=True)
        ]
    if unit.axis is not None:
        energy = torch.stack([part.slices().double().square().sum(dim=1) for part in producers(parts)]).sum(dim=0).cpu()
    else:
        energy = parts[0].tensor.detach().double().square().cpu()
    whole = max(float(energy.sum()), torch.finfo(torch.float64).tiny)
    return [float(energy[~keep].sum()) / whole for keep in keeps]
