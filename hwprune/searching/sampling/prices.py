"""Savings of each level of each unit on the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hwprune import patterns
from hwprune.pruning.pruner import Pruner
from hwprune.searching.space.space import Knob, SearchSpace

Array = np.ndarray[Any, Any]
BYTES = 4


@dataclass(slots=True)
class Prices:
    """Savings as shares of the dense model's time, and in bytes.

    Attributes (JSON keys are the tuples' parts, joined by tabs):
        saved: (unit, level) -> share of the dense time, for axes and branches; levels count from 1.
        bytes_saved: the same in bytes.
        coupled: (unit, unit) -> (level, level) -> share saved on top of both; levels count from 0, which is dense.
        share: weight matrix -> share of the dense time of the segments that read it.
    """

    saved: dict[tuple[str, int], float] = field(default_factory=dict)
    bytes_saved: dict[tuple[str, int], int] = field(default_factory=dict)
    coupled: dict[tuple[str, str], Array] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)

    def by_size(self, space: SearchSpace) -> dict[str, tuple[list[int], list[float]]]:
        """Axis -> its sizes, rising, and the share of the dense time that each saves: what gates that learn a speed need."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        for knob in space.knobs:
            for pattern, levels in knob.levels.items():
                if patterns.is_axis(pattern):
                    rows = [
                        (knob.size - round(s * knob.size), self.saved.get((knob.unit, n), 0.0)) for n, s in enumerate(levels, 1)
                    ]
                    rows = sorted([*rows, (knob.size, 0.0)])
                    found[knob.unit] = ([size for size, _ in rows], [saved for _, saved in rows])
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "saved": {f"{unit}\t{level}": value for (unit, level), value in self.saved.items()},
            "bytes_saved": {f"{unit}\t{level}": value for (unit, level), value in self.bytes_saved.items()},
            "coupled": {f"{a}\t{b}": table.tolist() for (a, b), table in self.coupled.items()},
            "share": dict(self.share),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Prices:
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
        return made


def axis_level(knob: Knob, level: int) -> tuple[dict[str, int], tuple[str, ...]]:
    """(keep counts, branches that go) of a knob at a level of its first pattern; 0 is dense."""
    pattern = next(iter(knob.levels))
    if level == 0:
        return {}, ()
    units = (knob.unit, *knob.tied)
    if pattern == patterns.BRANCH:
        return {}, units
    kept = knob.size - round(knob.sparsity(pattern, level) * knob.size)
    return dict.fromkeys(units, kept), ()


def structural(knob: Knob) -> bool:
    """Does it cut (an axis or a branch), rather than mask?"""
    return any(pattern == patterns.BRANCH or patterns.is_axis(pattern) for pattern in knob.levels)


def by_work(pruner: Pruner, space: SearchSpace) -> Prices:
    """Where models can't be taken apart into segments: time in proportion to multiply-accumulates."""
    prices = Prices()
    dense = max(1, pruner.macs({}))
    whole = pruner.graph.parameter_count({})
    for knob in filter(structural, space.knobs):
        for level in range(1, knob.depth + 1):
            counts, drop = axis_level(knob, level)
            try:
                prices.saved[knob.unit, level] = 1 - pruner.macs(counts, drop) / dense
                prices.bytes_saved[knob.unit, level] = BYTES * (whole - pruner.graph.parameter_count(counts, drop))
            except (KeyError, ValueError, RuntimeError):
                continue
    matrices = {unit.name: unit.size for unit in pruner.units.values() if unit.matrix is not None}
    total = max(1, sum(matrices.values()))
    prices.share = {name: size / total for name, size in matrices.items()}
    return prices
