"""Savings of each level of each unit on the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwprune import patterns
from hwprune.pruning.pruner import Pruner
from hwprune.searching.space import space_file
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.space.unit_space import UnitSpace

Array = np.ndarray[Any, Any]
BYTES = 4
NOTABLE = 0.05
"""Share of the time from which the user is told what is not searched."""


@dataclass(slots=True)
class Savings:
    """Savings as shares of the dense model's time, and in bytes.

    Attributes (JSON keys are the tuples' parts, joined by tabs):
        saved: (unit, level) -> share of the dense time, for axes and branches; levels count from 1.
        bytes_saved: the same in bytes.
        coupled: (unit, unit) -> (level, level) -> share saved on top of both; levels count from 0, which is dense.
        share: weight matrix -> share of the dense time of the segments that read it.
        unsearched: role -> number of axes of a role that the space leaves out.
        unsearched_share: share of the dense time of the segments that these change, and nothing that is searched does.
    """

    saved: dict[tuple[str, int], float] = field(default_factory=dict)
    bytes_saved: dict[tuple[str, int], int] = field(default_factory=dict)
    coupled: dict[tuple[str, str], Array] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    unsearched: dict[str, int] = field(default_factory=dict)
    unsearched_share: float = 0.0

    def by_size(self, space: SearchSpace) -> dict[str, tuple[list[int], list[float]]]:
        """Axis -> its sizes, rising, and the share of the dense time that each saves: what gates that learn a speed need."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        for unit_space in space.units:
            for pattern, levels in unit_space.levels.items():
                if patterns.is_axis(pattern):
                    rows = [
                        (unit_space.size - round(s * unit_space.size), self.saved.get((unit_space.unit, n), 0.0))
                        for n, s in enumerate(levels, 1)
                    ]
                    rows = sorted([*rows, (unit_space.size, 0.0)])
                    found[unit_space.unit] = ([size for size, _ in rows], [saved for _, saved in rows])
        return found

    def for_record(self, space: SearchSpace) -> dict[str, tuple[list[int], list[float]]]:
        """As `by_size`, with branches, which are there or not."""
        rows = self.by_size(space)
        for unit_space in space.units:
            if (unit_space.unit, 1) in self.saved and unit_space.unit not in rows:
                rows[unit_space.unit] = ([0, unit_space.size], [self.saved[unit_space.unit, 1], 0.0])
        return rows

    def to_json(self) -> dict[str, Any]:
        return {
            "saved": {f"{unit}\t{level}": value for (unit, level), value in self.saved.items()},
            "bytes_saved": {f"{unit}\t{level}": value for (unit, level), value in self.bytes_saved.items()},
            "coupled": {f"{a}\t{b}": table.tolist() for (a, b), table in self.coupled.items()},
            "share": dict(self.share),
            "unsearched": dict(self.unsearched),
            "unsearched_share": self.unsearched_share,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Savings:
        def level(key: str) -> tuple[str, int]:
            unit, number = key.rsplit("\t", 1)
            return unit, int(number)

        made = cls(
            {level(k): float(v) for k, v in data["saved"].items()}, {level(k): int(v) for k, v in data["bytes_saved"].items()}
        )
        for key, table in data["coupled"].items():
            a, b = key.split("\t")
            made.coupled[a, b] = np.array(table, dtype=float)
        made.share = {str(k): float(v) for k, v in data["share"].items()}
        # Studies that were begun by earlier versions don't have these.
        made.unsearched = {str(k): int(v) for k, v in data.get("unsearched", {}).items()}
        made.unsearched_share = float(data.get("unsearched_share", 0.0))
        return made


def note_on_unsearched(savings: Savings) -> str:
    """What the space leaves out though much of the time hangs on it, and the option that brings it in; empty: nothing."""
    if savings.unsearched_share < NOTABLE:
        return ""
    axes = ", ".join(f"{count} {role} ax{'i' if count == 1 else 'e'}s" for role, count in savings.unsearched.items())
    shipped = space_file.searching(set(savings.unsearched))
    how = f"; --space {shipped} searches them" if shipped else ""
    share = f"{100 * savings.unsearched_share:.0f} %"
    return f"Not searched: {axes} ({share} of the time is in layers that nothing else reaches{how})."


def axis_level(unit_space: UnitSpace, level: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """(keep counts, branches that go) of a unit_space at a level of its first pattern; 0 is dense."""
    pattern = next(iter(unit_space.levels))
    if level == 0:
        return {}, ()
    units = (unit_space.unit, *unit_space.tied)
    if pattern == patterns.BRANCH:
        return {}, units
    kept = unit_space.size - round(unit_space.sparsity(pattern, level) * unit_space.size)
    return dict.fromkeys(units, kept), ()


def structural(unit_space: UnitSpace) -> bool:
    """Does it cut (an axis or a branch), rather than mask?"""
    return any(pattern == patterns.BRANCH or patterns.is_axis(pattern) for pattern in unit_space.levels)


def by_work(pruner: Pruner, space: SearchSpace) -> Savings:
    """Where models can't be taken apart into segments: time in proportion to multiply-accumulates."""
    savings = Savings()
    dense = max(1, pruner.macs({}))
    whole = pruner.graph.parameter_count({})
    for unit_space in filter(structural, space.units):
        for level in range(1, unit_space.depth + 1):
            counts, drop = axis_level(unit_space, level)
            try:
                savings.saved[unit_space.unit, level] = 1 - pruner.macs(counts, drop) / dense
                savings.bytes_saved[unit_space.unit, level] = BYTES * (whole - pruner.graph.parameter_count(counts, drop))
            except (KeyError, ValueError, RuntimeError):
                continue
    matrices = {unit.name: unit.size for unit in pruner.units.values() if unit.matrix is not None}
    total = max(1, sum(matrices.values()))
    savings.share = {name: size / total for name, size in matrices.items()}
    return savings
