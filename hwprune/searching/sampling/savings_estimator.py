"""What every choice costs before any candidate was measured: seconds and bytes that it saves, alone and with its neighbours.

Seconds come from the table of measured segments: the model is cut by one choice, and the segments that changed are looked up,
or measured where the table does not know them. Many choices share a cut: what touches other segments does not disturb.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import onnx

from hwprune import patterns
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency.segments import Segment
from hwprune.probe.cut_segments import CutSegments
from hwprune.pruning.pruner import Pruner
from hwprune.searching.sampling import concatenation, couplings, token_savings
from hwprune.searching.sampling.savings import BYTES, Savings, axis_level, structural
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.space.unit_space import UnitSpace

Times = Callable[[Sequence[Segment]], Mapping[str, float]]
"""Segments -> seconds by signature."""


class SavingsEstimator:
    """Prices of a space's choices from segments."""

    def __init__(self, pruner: Pruner, space: SearchSpace, pieces: CutSegments, times: Times) -> None:
        self.pruner, self.space, self.pieces, self.times = pruner, space, pieces, times
        self.units = [unit_space for unit_space in space.units if structural(unit_space)]
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
        leaders = token_savings.followers(priced)
        for level in range(1, max((k.depth for k in priced), default=0)):
            rest = [unit_space for unit_space in priced if level < unit_space.depth and unit_space.unit not in leaders]
            together[level] = _disjoint(rest, touched)
        cuts: dict[tuple[str, int], list[Segment]] = {}
        single = {(unit_space.unit, unit_space.depth) for unit_space in priced}
        for level, groups in together.items():
            for units, segments in itertools.chain.from_iterable(self._together(group, level) for group in groups):
                cuts |= {(unit, level): segments for unit in units}
                single |= {(unit, level) for unit in units if len(units) == 1}
                wanted += segments
        beside = concatenation.groups(priced, self.pruner)
        for one in beside:
            one.cut_all(self._cut)
            wanted += [segment for segments in one.cuts.values() for segment in segments]
        side_by_side = frozenset().union(*(one.units for one in beside))
        pairs = couplings.find_pairs(priced, touched, self.space.dead)
        pairs = [p for p in pairs if not any({p.first.unit, p.second.unit} <= one.units for one in beside)]
        alone_only = [p for p in pairs if not {p.first.unit, p.second.unit} & side_by_side]
        pair_cuts = couplings.cut_pairs(alone_only, self._cut)
        for pair_cut in pair_cuts:
            wanted += pair_cut.segments
        known = dict(self.times(wanted))
        by_name = {s.name: known[s.signature] for s in dense}
        total = sum(known[s.signature] for s in dense)
        cuts |= {(unit_space.unit, unit_space.depth): first[unit_space.unit] for unit_space in priced}
        alone: dict[tuple[str, int], dict[str, float]] = {}
        for (unit, level), segments in cuts.items():
            mine = touched[unit]
            # Others may share the cut; what is new in it can only be told apart where the unit was cut by itself.
            own = [s for s in segments if s.name in mine or ((unit, level) in single and s.name not in names)]
            alone[unit, level] = {s.name: known[s.signature] for s in own}
            found.saved[unit, level] = (sum(by_name[name] for name in mine) - sum(known[s.signature] for s in own)) / total
        for unit_space in (one for one in priced if one.unit in leaders):
            leader, mine = leaders[unit_space.unit], touched[unit_space.unit]
            saved = token_savings.follow(unit_space, leader, mine, by_name, alone)
            found.saved |= {(unit_space.unit, level): seconds / total for level, seconds in saved.items()}
        for one in beside:
            for key, gone in one.gone(by_name, touched, known, self._work(one)).items():
                alone[key] = {name: by_name[name] - seconds for name, seconds in gone.items()}
                found.saved[key] = sum(gone.values()) / total
        measured = couplings.seconds_left(pair_cuts, known)
        found.coupled = couplings.CouplingTables(by_name, alone, measured).tables(pairs)
        self._add_bytes(found)
        found.share = self._shares(dense, known, total)
        self._add_unsearched(found, dense, frozenset().union(*touched.values()), by_name)
        return found

    def _add_unsearched(
        self, found: Savings, dense: Sequence[Segment], reached: frozenset[str], seconds: Mapping[str, float]
    ) -> None:
        """Axes whose role the space does not name, and the time of what only they could change."""
        roles = set(patterns.AXIS_PATTERNS) - set(self.space.file.roles)
        axes = [unit for unit in self.pruner.units.values() if unit.axis is not None and unit.role in roles and unit.size > 1]
        # One cut of all of them shows what they reach together.
        segments = self._cut({unit.name: unit.size // 2 for unit in axes}, ()) if axes else None
        if segments is None:
            return
        masked = {self.pruner.template.names.get(unit.unit, unit.unit) for unit in self.space.units if unit.role == "matrix"}
        theirs = _changed({s.name: s.signature for s in dense}, segments) - reached
        theirs -= {s.name for s in dense if masked & set(s.constants)}
        found.unsearched = dict(Counter(unit.role for unit in axes))
        found.unsearched_share = sum(seconds[name] for name in theirs) / sum(seconds.values())

    def _work(self, group: concatenation.Group) -> dict[tuple[str, int], float]:
        """Multiply-accumulates that each member's levels save."""
        dense = self.pruner.macs({})
        return {
            (member.unit, level): dense - self.pruner.macs(*axis_level(member, level))
            for member in group.members
            for level in range(1, member.depth + 1)
        }

    def _add_bytes(self, found: Savings) -> None:
        for unit_space in self.units:
            for level in range(1, unit_space.depth + 1):
                left = self.pruner.graph.parameter_count(*axis_level(unit_space, level))
                found.bytes_saved[unit_space.unit, level] = BYTES * (self._parameters - left)

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

    def _shares(self, dense: Sequence[Segment], known: Mapping[str, float], total: float) -> dict[str, float]:
        """Weight matrix -> share of the time, matched by initializer names."""
        names = self.pruner.template.names
        shares: dict[str, float] = {}
        for unit in self.pruner.units.values():
            if unit.matrix is None:
                continue
            stored = names.get(unit.name, unit.name)
            shares[unit.name] = sum(known[s.signature] for s in dense if stored in s.constants) / total
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
