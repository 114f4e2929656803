"""What two choices save together, where both touch the same layers.

A layer between two axes has the time of a product of their widths: half of the one and half of the other leave a quarter, and
not nothing. So a pair is taken for a product, layer by layer, and how far that is from the truth is measured by cuts of both at a
few sizes. Between these the deviation is interpolated: a layer whose time is a fixed cost and a part that grows with both
widths is told exactly. A dropped branch leaves nothing of its layers to save from, which is the same product with a zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from hwprune import patterns
from hwprune.latency.segments import Segment
from hwprune.searching.sampling.savings import axis_level
from hwprune.searching.space.unit_space import UnitSpace

Array = np.ndarray[Any, Any]
Cut = Callable[[Mapping[str, int], Sequence[str]], Sequence[Segment] | None]
"""(keep counts, branches that go) -> the segments that are left; None if the model can't be cut so."""

LEAST = 1e-4
"""Share of the dense time below which two choices are not coupled."""
MOST_COUPLED = 150
"""Cuts that are made to measure pairs; beyond, all are taken for products."""
SAMPLED = 3
"""Sizes of an axis at which it is cut together with others."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two unit_spaces that share layers: the names of those."""

    first: UnitSpace
    second: UnitSpace
    shared: frozenset[str]


@dataclass(frozen=True, slots=True)
class PairCut:
    """One cut of two groups of axes, and the pairs that it tells of, each with its two levels."""

    segments: Sequence[Segment]
    tells: tuple[tuple[Pair, int, int], ...]


def find_pairs(
    unit_spaces: Sequence[UnitSpace], touched: Mapping[str, frozenset[str]], dead: Callable[[Sequence[str]], Set[str]]
) -> list[Pair]:
    """The unit_spaces that share layers; not a branch with what is inside it, or with another one: these are one decision.

    Args:
        touched: unit -> names of the layers that a cut of it changes.
        dead: units that are gone once branches are dropped.
    """
    inside = {unit_space.unit: dead((unit_space.unit, *unit_space.tied)) for unit_space in unit_spaces if _is_branch(unit_space)}
    pairs = []
    for first, second in combinations(unit_spaces, 2):
        shared = touched[first.unit] & touched[second.unit]
        both_branches = _is_branch(first) and _is_branch(second)
        nested = second.unit in inside.get(first.unit, ()) or first.unit in inside.get(second.unit, ())
        if shared and not both_branches and not nested:
            pairs.append(Pair(first, second, shared))
    return pairs


def cut_pairs(pairs: Sequence[Pair], cut: Cut) -> list[PairCut]:
    """Cuts of two axes at once at a few of their sizes.

    Axes of one colour share no layer, so one cut of all axes of two colours serves every pair of them.
    """
    pairs = [pair for pair in pairs if not any(_is_branch(one) or _is_tokens(one) for one in (pair.first, pair.second))]
    axes = {unit_space.unit: unit_space for pair in pairs for unit_space in (pair.first, pair.second)}
    colours = colouring(list(axes), [(pair.first.unit, pair.second.unit) for pair in pairs])
    by_colours: dict[tuple[int, int], list[Pair]] = {}
    for pair in pairs:
        one, other = sorted((colours[pair.first.unit], colours[pair.second.unit]))
        by_colours.setdefault((one, other), []).append(pair)
    if len(by_colours) * SAMPLED**2 > MOST_COUPLED:
        return []
    made = []
    for (one, other), members in by_colours.items():
        groups = {colour: [axis for axis in axes.values() if colours[axis.unit] == colour] for colour in (one, other)}
        places = {colour: max(len(sampled(axis.depth)) for axis in group) for colour, group in groups.items()}
        for place in product(range(places[one]), range(places[other])):
            levels = {
                axis.unit: _at(axis, number)
                for number, colour in zip(place, (one, other), strict=True)
                for axis in groups[colour]
            }
            counts: dict[str, int] = {}
            for unit, level in levels.items():
                counts |= axis_level(axes[unit], level)[0]
            segments = cut(counts, ())
            if segments is not None:
                tells = tuple((pair, levels[pair.first.unit], levels[pair.second.unit]) for pair in members)
                made.append(PairCut(segments, tells))
    return made


def seconds_left(pair_cuts: Sequence[PairCut], known: Mapping[str, float]) -> dict[tuple[str, str], dict[tuple[int, int], float]]:
    """(unit, unit) -> levels -> seconds that the layers that both share take once both are cut.

    Args:
        known: signature -> seconds.
    """
    found: dict[tuple[str, str], dict[tuple[int, int], float]] = {}
    for pair_cut in pair_cuts:
        seconds = {s.name: known[s.signature] for s in pair_cut.segments}
        for pair, level, other in pair_cut.tells:
            left = sum(seconds.get(name, 0.0) for name in pair.shared)
            found.setdefault((pair.first.unit, pair.second.unit), {})[level, other] = left
    return found


class CouplingTables:
    """Tables of what pairs save beyond the sum of what each saves alone.

    Args:
        dense: name -> seconds of the dense model's layers.
        alone: (unit, level) -> name -> seconds of the layers that are left of a cut of it alone, of those that it touches.
        measured: what `seconds_left` gives.
    """

    def __init__(
        self,
        dense: Mapping[str, float],
        alone: Mapping[tuple[str, int], Mapping[str, float]],
        measured: Mapping[tuple[str, str], Mapping[tuple[int, int], float]],
    ) -> None:
        self.dense, self.alone, self.measured = dense, alone, measured
        self.total = sum(dense.values())

    def table(self, pair: Pair) -> Array:
        """(levels of the first, levels of the second) -> share of the dense time; levels count from 0, which is dense."""
        names = sorted(pair.shared)
        before = np.array([self.dense[name] for name in names])
        first, second = self._gone(pair.first, names, before), self._gone(pair.second, names, before)
        as_product = -(first / np.maximum(before, 1e-30)) @ second.T
        known = self.measured.get((pair.first.unit, pair.second.unit), {})
        rows, columns = sorted({0, *(i for i, _ in known)}), sorted({0, *(j for _, j in known)})
        off = np.zeros((len(rows), len(columns)))
        for (i, j), left in known.items():
            extra = before.sum() - left - first[i].sum() - second[j].sum()
            off[rows.index(i), columns.index(j)] = extra - as_product[i, j]
        found: Array = (as_product + _between(off, _sparsities(pair.first), rows, _sparsities(pair.second), columns)) / self.total
        return found

    def tables(self, pairs: Sequence[Pair]) -> dict[tuple[str, str], Array]:
        """The tables of the pairs that matter."""
        found = {(pair.first.unit, pair.second.unit): self.table(pair) for pair in pairs}
        return {key: table for key, table in found.items() if np.abs(table).max() >= LEAST}

    def _gone(self, unit_space: UnitSpace, names: Sequence[str], before: Array) -> Array:
        """(levels, layers): seconds that each level alone saves in each layer; nothing where a level has no price."""
        rows = [np.zeros(len(names))]
        for level in range(1, unit_space.depth + 1):
            left = self.alone.get((unit_space.unit, level))
            rows.append(np.zeros(len(names)) if left is None else before - np.array([left.get(name, 0.0) for name in names]))
        return np.stack(rows)


def sampled(depth: int) -> tuple[int, ...]:
    """The levels at which an axis is cut together with others: evenly spaced, the deepest among them."""
    return tuple(dict.fromkeys(round(depth * (n + 1) / SAMPLED) or 1 for n in range(SAMPLED)))


def colouring(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Few colours of which no two neighbours have the same: greedy, those with most neighbours first."""
    around: dict[str, set[str]] = {node: set() for node in nodes}
    for a, b in edges:
        around[a].add(b)
        around[b].add(a)
    colours: dict[str, int] = {}
    for node in sorted(nodes, key=lambda node: -len(around[node])):
        taken = {colours[near] for near in around[node] if near in colours}
        colours[node] = next(colour for colour in range(len(nodes)) if colour not in taken)
    return colours


def _is_branch(unit_space: UnitSpace) -> bool:
    return patterns.BRANCH in unit_space.levels


def _is_tokens(unit_space: UnitSpace) -> bool:
    """Fewer tokens change all that follows, each layer in proportion: they are taken for products."""
    return any(pattern in patterns.TOKENS for pattern in unit_space.levels)


def _at(axis: UnitSpace, number: int) -> int:
    """The axis's level at one of the sampled places; one with fewer levels repeats its deepest."""
    levels = sampled(axis.depth)
    return levels[min(number, len(levels) - 1)]


def _sparsities(unit_space: UnitSpace) -> Array:
    """The sparsity of each level, of the dense one first."""
    pattern = next(iter(unit_space.levels))
    return np.array([0.0, *(unit_space.sparsity(pattern, level) for level in range(1, unit_space.depth + 1))])


def _between(grid: Array, down: Array, rows: Sequence[int], across: Array, columns: Sequence[int]) -> Array:
    """What is known of some rows and columns, at all of them: straight lines over the sparsities."""
    wide = np.stack([np.interp(across, across[list(columns)], row) for row in grid])
    return np.stack([np.interp(down, down[list(rows)], column) for column in wide.T], axis=1)
