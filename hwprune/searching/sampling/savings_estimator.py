"""What every choice costs before any candidate was measured: seconds and bytes that it saves, alone and with its neighbours.

Seconds come from the table of measured segments: the model is cut by one choice, and the segments that changed are looked up,
or measured where the table does not know them. Many choices share a cut: what touches other segments does not disturb.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx

from hwprune import patterns
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency.segments import Segment
from hwprune.probe.cut_segments import CutSegments
from hwprune.pruning.pruner import Pruner
from hwprune.searching.sampling.savings import BYTES, Savings, axis_level, structural
from hwprune.searching.space.space import SearchSpace, UnitSpace

Times = Callable[[Sequence[Segment]], Mapping[str, float]]
"""Segments -> seconds by signature."""

LEAST = 1e-4
"""Share of the dense time below which two choices are not coupled."""
MOST_COUPLED = 400
"""Cuts that are made to price couplings; beyond, they are taken to add up."""


class SavingsEstimator:
    """Prices of a space's choices from segments."""

    def __init__(self, pruner: Pruner, space: SearchSpace, pieces: CutSegments, times: Times) -> None:
        self.pruner, self.space, self.pieces, self.times = pruner, space, pieces, times
        self.units = [unit_space for unit_space in space.units if structural(unit_space)]
        self._known: dict[str, float] = {}
        self._parameters = pruner.graph.parameter_count({})

    def savings(self) -> Savings:
        """Cut, look up, and measure what is missing."""
        found = Savings()
        dense = self.pieces.segments(self.pieces.cut({}))
        wanted: list[Segment] = list(dense)
        first: dict[str, list[Segment]] = {}
        for unit_space in self.units:
            segments = self._cut(*axis_level(unit_space, unit_space.depth))
            if segments is not None:  # else it stays without a price, and is taken for one that saves nothing
                first[unit_space.unit] = segments
                wanted += segments
        priced = [unit_space for unit_space in self.units if unit_space.unit in first]
        names = {s.name: s.signature for s in dense}
        touched = {unit: _changed(names, segments) for unit, segments in first.items()}
        together: dict[int, list[list[UnitSpace]]] = {}
        for level in range(1, max((k.depth for k in priced), default=0)):
            rest = [unit_space for unit_space in priced if level < unit_space.depth]
            together[level] = _disjoint(rest, touched)
        cuts: dict[tuple[str, int], list[Segment]] = {}
        for level, groups in together.items():
            for group in groups:
                for units, segments in self._together(group, level):
                    for unit in units:
                        cuts[unit, level] = segments
                    wanted += segments
        pairs = self._pairs(touched, names)
        for segments in pairs.values():
            wanted += segments
        self._known = dict(self.times(wanted))
        total = sum(self._known[s.signature] for s in dense)
        by_name = {s.name: self._known[s.signature] for s in dense}

        def saved(segments: Sequence[Segment], within: frozenset[str]) -> float:
            now = sum(self._known[s.signature] for s in segments if s.name in within or s.name not in names)
            return (sum(by_name[name] for name in within if name in by_name) - now) / total

        for unit_space in priced:
            found.saved[unit_space.unit, unit_space.depth] = saved(first[unit_space.unit], touched[unit_space.unit])
        for (unit, level), segments in cuts.items():
            found.saved[unit, level] = saved([s for s in segments if s.name in touched[unit]], touched[unit])
        self._couple(found, pairs, touched, by_name, total)
        for unit_space in self.units:
            for level in range(1, unit_space.depth + 1):
                left = self.pruner.graph.parameter_count(*axis_level(unit_space, level))
                found.bytes_saved[unit_space.unit, level] = BYTES * (self._parameters - left)
        found.share = self._shares(dense, total)
        return found

    def _together(self, group: Sequence[UnitSpace], level: int) -> list[tuple[list[str], list[Segment]]]:
        """One cut for a group of unit_spaces, or one for each where they can't be cut together."""
        counts: dict[str, int] = {}
        drop: tuple[str, ...] = ()
        for unit_space in group:
            own, gone = axis_level(unit_space, level)
            counts |= own
            drop += gone
        segments = self._cut(counts, drop)
        if segments is not None:
            return [([unit_space.unit for unit_space in group], segments)]
        return [] if len(group) == 1 else [pair for unit_space in group for pair in self._together([unit_space], level)]

    def _cut(self, counts: Mapping[str, int], drop: Sequence[str]) -> list[Segment] | None:
        """The segments of a cut; None if it can't be taken apart."""
        try:
            model: onnx.ModelProto = self.pieces.cut(counts, drop)
            return self.pieces.segments(model)
        except (CandidateFailure, UsageError):
            return None

    def _pairs(self, touched: Mapping[str, frozenset[str]], names: Mapping[str, str]) -> dict[Any, list[Segment]]:
        """Cuts of two unit_spaces at once, for those that share a segment and are not one inside the other."""
        axes = [
            unit_space for unit_space in self.units if patterns.BRANCH not in unit_space.levels and unit_space.unit in touched
        ]
        coupled = [(a, b) for i, a in enumerate(axes) for b in axes[i + 1 :] if touched[a.unit] & touched[b.unit] & set(names)]
        if not coupled or sum(a.depth * b.depth for a, b in coupled) > MOST_COUPLED * 20:
            return {}
        colours = _colours([unit_space.unit for unit_space in axes], [(a.unit, b.unit) for a, b in coupled])
        depth = max(unit_space.depth for unit_space in axes)
        made: dict[Any, list[Segment]] = {}
        if colours is not None and depth**2 <= MOST_COUPLED:
            # Two colours: one cut gives one combination of levels for every coupled pair.
            for first, second in product(range(1, depth + 1), repeat=2):
                counts: dict[str, int] = {}
                for unit_space in axes:
                    level = min((first, second)[colours[unit_space.unit]], unit_space.depth)
                    counts |= axis_level(unit_space, level)[0]
                segments = self._cut(counts, ())
                for a, b in coupled if segments is not None else ():
                    assert segments is not None
                    level_a = min((first, second)[colours[a.unit]], a.depth)
                    level_b = min((first, second)[colours[b.unit]], b.depth)
                    made[a.unit, b.unit, level_a, level_b] = [s for s in segments if s.name in touched[a.unit] & touched[b.unit]]
        elif sum(a.depth * b.depth for a, b in coupled) <= MOST_COUPLED:
            for a, b in coupled:
                for i, j in product(range(1, a.depth + 1), range(1, b.depth + 1)):
                    segments = self._cut({**axis_level(a, i)[0], **axis_level(b, j)[0]}, ())
                    if segments is not None:
                        made[a.unit, b.unit, i, j] = [s for s in segments if s.name in touched[a.unit] & touched[b.unit]]
        return made

    def _couple(
        self,
        found: Savings,
        pairs: Mapping[Any, Sequence[Segment]],
        touched: Mapping[str, frozenset[str]],
        dense: Mapping[str, float],
        total: float,
    ) -> None:
        """What a pair of levels saves beyond the sum of what each saves alone, in the segments that they share."""
        depth = {unit_space.unit: unit_space.depth for unit_space in self.units}
        alone: dict[tuple[str, int, frozenset[str]], float] = {}
        by_unit = {unit_space.unit: unit_space for unit_space in self.units}

        def single(unit: str, level: int, shared: frozenset[str]) -> float:
            key = (unit, level, shared)
            if key not in alone:
                segments = [s for s in self._cut(*axis_level(by_unit[unit], level)) or () if s.name in shared]
                missing = [s for s in segments if s.signature not in self._known]
                if missing:
                    self._known.update(self.times(missing))
                alone[key] = sum(dense[n] for n in shared if n in dense) - sum(self._known[s.signature] for s in segments)
            return alone[key]

        for (a, b, i, j), segments in pairs.items():
            shared = touched[a] & touched[b]
            both = sum(dense[n] for n in shared if n in dense) - sum(self._known[s.signature] for s in segments)
            extra = (both - single(a, i, shared) - single(b, j, shared)) / total
            table = found.coupled.setdefault((a, b), np.zeros((depth[a] + 1, depth[b] + 1)))
            table[i, j] = extra
        for key in [key for key, table in found.coupled.items() if np.abs(table).max() < LEAST]:
            del found.coupled[key]

    def _shares(self, dense: Sequence[Segment], total: float) -> dict[str, float]:
        """Weight matrix -> share of the time, matched by initializer names."""
        names = self.pruner.template.names
        shares: dict[str, float] = {}
        for unit in self.pruner.units.values():
            if unit.matrix is None:
                continue
            stored = names.get(unit.name, unit.name)
            shares[unit.name] = sum(self._known[s.signature] for s in dense if stored in s.constants) / total
        return shares


def _changed(dense: Mapping[str, str], segments: Sequence[Segment]) -> frozenset[str]:
    """Names of the dense segments that are gone or different."""
    now = {s.name: s.signature for s in segments}
    return frozenset(name for name, signature in dense.items() if now.get(name) != signature) if segments else frozenset()


def _disjoint(unit_spaces: Sequence[UnitSpace], touched: Mapping[str, frozenset[str]]) -> list[list[UnitSpace]]:
    """Groups of unit_spaces of which no two touch the same segment."""
    groups: list[tuple[list[UnitSpace], set[str]]] = []
    for unit_space in unit_spaces:
        for members, names in groups:
            if not names & touched[unit_space.unit]:
                members.append(unit_space)
                names.update(touched[unit_space.unit])
                break
        else:
            groups.append(([unit_space], set(touched[unit_space.unit])))
    return [members for members, _ in groups]


def _colours(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int] | None:
    """A two-colouring, or None."""
    around: dict[str, list[str]] = {node: [] for node in nodes}
    for a, b in edges:
        around[a].append(b)
        around[b].append(a)
    colour: dict[str, int] = {}
    for start in nodes:
        if start in colour:
            continue
        colour[start] = 0
        stack = [start]
        while stack:
            at = stack.pop()
            for near in around[at]:
                if near not in colour:
                    colour[near] = 1 - colour[at]
                    stack.append(near)
                elif colour[near] == colour[at]:
                    return None
    return colour
