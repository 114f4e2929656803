"""Axes that lie beside one another in a layer's inputs or outputs: concatenated branches, pieces of a widened residual stream.

The time of such a layer follows the sum of their widths. Cut alone, one of them often leaves a width that the target does not
like, and saves less than nothing; two of them save more than both alone, and sums of pairs would promise more than there is once
three lie side by side. So they are cut together, at one sparsity after the other, and each gets its part of what that saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from hwprune import patterns
from hwprune.latency.segments import Segment
from hwprune.pruning.pruner import Pruner
from hwprune.searching.sampling.couplings import Cut
from hwprune.searching.sampling.savings import axis_level
from hwprune.searching.space.unit_space import UnitSpace

Levels = tuple[tuple[str, int], ...]
"""(unit, level) of every member of a group."""


@dataclass(slots=True)
class Group:
    """Axes side by side.

    Attributes:
        members: two at least.
        cuts: levels of all members -> the segments that are left.
    """

    members: tuple[UnitSpace, ...]
    cuts: dict[Levels, Sequence[Segment]] = field(default_factory=dict)

    @property
    def units(self) -> frozenset[str]:
        return frozenset(member.unit for member in self.members)

    def cut_all(self, cut: Cut) -> None:
        """Cut the members together, so that each is cut at each of its levels."""
        for levels in self._wanted():
            counts: dict[str, int] = {}
            for member in self.members:
                counts |= axis_level(member, dict(levels)[member.unit])[0]
            segments = cut(counts, ())
            if segments is not None:
                self.cuts[levels] = segments

    def _wanted(self) -> Iterator[Levels]:
        """Combinations of about the same sparsity, those of the member with the most levels first."""
        covered: set[tuple[str, int]] = set()
        for member in sorted(self.members, key=lambda one: -one.depth):
            for level in range(1, member.depth + 1):
                if (member.unit, level) in covered:
                    continue
                sparsity = _sparsity(member, level)
                chosen = tuple((other.unit, level if other is member else _nearest(other, sparsity)) for other in self.members)
                covered |= set(chosen)
                yield chosen

    def gone(
        self,
        dense: Mapping[str, float],
        touched: Mapping[str, frozenset[str]],
        known: Mapping[str, float],
        weights: Mapping[tuple[str, int], float],
    ) -> dict[tuple[str, int], dict[str, float]]:
        """(unit, level) -> name of a layer -> seconds of it that are the member's part of what a cut of all saves.

        Args:
            dense: name -> seconds of the dense model's layers.
            touched: unit -> layers that it changes.
            known: signature -> seconds.
            weights: what each member would save by its share of the work; only their ratios count.
        """
        found: dict[tuple[str, int], dict[str, float]] = {}
        for levels, segments in self.cuts.items():
            left = {s.name: known[s.signature] for s in segments}
            added = sum(known[s.signature] for s in segments if s.name not in dense)
            saved = {name: dense[name] - left.get(name, 0.0) for name in frozenset().union(*(touched[u] for u, _ in levels))}
            total = sum(saved.values())
            share = 1 - added / total if total > 0 else 1.0  # operators that a cut adds take their part of it back
            for unit, level in levels:
                mine = {}
                for name in touched[unit]:
                    side = {key: max(weights[key], 1e-12) for key in levels if name in touched[key[0]]}
                    mine[name] = share * saved[name] * side[unit, level] / sum(side.values())
                found.setdefault((unit, level), mine)
        return found


def groups(unit_spaces: Sequence[UnitSpace], pruner: Pruner) -> list[Group]:
    """Axes of which two share a dim of a weight without sharing positions of it, and all that hang together so."""
    axes = [one for one in unit_spaces if patterns.BRANCH not in one.levels]
    places: dict[tuple[str, int], list[tuple[str, frozenset[int]]]] = {}
    matrices = {matrix.parameter for matrix in pruner.graph.matrices}
    for one in axes:
        for unit in (one.unit, *one.tied):
            axis = pruner.units[unit].axis
            for name, dim in axis.members if axis is not None else ():
                if axis is not None and name in matrices:
                    index = pruner.graph.slices(axis, name, dim)
                    places.setdefault((name, dim), []).append((one.unit, frozenset((index >= 0).nonzero()[0].tolist())))
    parent = {one.unit: one.unit for one in axes}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for sharing in places.values():
        for (first, mine), (second, theirs) in combinations(sharing, 2):
            if not mine & theirs:
                parent[root(first)] = root(second)
    found: dict[str, list[UnitSpace]] = {}
    for one in axes:
        found.setdefault(root(one.unit), []).append(one)
    return [Group(tuple(members)) for members in found.values() if len(members) > 1]


def _sparsity(unit_space: UnitSpace, level: int) -> float:
    return unit_space.sparsity(next(iter(unit_space.levels)), level)


def _nearest(unit_space: UnitSpace, sparsity: float) -> int:
    return min(range(1, unit_space.depth + 1), key=lambda level: abs(_sparsity(unit_space, level) - sparsity))
