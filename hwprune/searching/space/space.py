"""Search space: what may be chosen for each unit, as ordered numbers and few categories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import log10
from typing import Any

from hwprune import patterns
from hwprune.methods import method
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.searching.space.space_file import SpaceFile


@dataclass(frozen=True, slots=True)
class UnitSpace:
    """What may be chosen for one unit.

    ``levels[pattern]``: sparsities in rising order. Level 0 is dense, level i is ``levels[pattern][i - 1]``; a
    pattern with fewer levels than another repeats its last one. ``tied``: units that follow its decision.
    """

    unit: str
    role: str
    size: int
    levels: Mapping[str, tuple[float, ...]]
    methods: tuple[str, ...]
    tied: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        return max(len(levels) for levels in self.levels.values())

    def sparsity(self, pattern: str, level: int) -> float:
        levels = self.levels[pattern]
        return levels[min(level, len(levels)) - 1]

    def nearest(self, pattern: str, sparsity: float) -> int:
        """The level whose sparsity is nearest; 0 (dense) counts."""
        choices = [0.0, *self.levels[pattern]]
        return min(range(len(choices)), key=lambda i: (abs(choices[i] - sparsity), i))


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The units of one model on one target, and what was left out and why."""

    file: SpaceFile
    units: tuple[UnitSpace, ...]
    compensation: str
    left_out: tuple[tuple[str, str], ...]
    """(unit or pattern, reason)"""
    dead: Callable[[Sequence[str]], Set[str]] = lambda _drop: frozenset()
    """Units that are gone once these branches are dropped."""

    @property
    def size_log10(self) -> float:
        """Decimal logarithm of the number of different recipes."""
        total = 0.0
        for unit_space in self.units:
            options = sum(len(levels) * len(unit_space.methods) for levels in unit_space.levels.values())
            total += log10(1 + options)
        return total

    def recipe(self, parameters: Mapping[str, Any]) -> Recipe:
        """Canonical recipe of a sampler's choice: equal prunings give equal recipes."""
        choices = []
        for unit_space in self.units:
            level = int(parameters[f"level:{unit_space.unit}"])
            if level == 0:
                continue
            pattern = str(parameters.get(f"pattern:{unit_space.unit}", next(iter(unit_space.levels))))
            chosen = _canonical(unit_space, pattern, str(parameters.get(f"method:{unit_space.unit}", unit_space.methods[0])))
            for unit in (unit_space.unit, *unit_space.tied):
                choices.append(UnitChoice(unit, pattern, unit_space.sparsity(pattern, level), chosen))
        if drop := [choice.unit for choice in choices if choice.pattern == patterns.BRANCH]:
            dead = self.dead(drop)
            choices = [choice for choice in choices if choice.unit not in dead]
        return Recipe(tuple(choices), self.compensation if choices else "none")

    def uniform(self, sparsity: float, method: str) -> dict[str, Any]:
        """Parameters that give every unit the level nearest to ``sparsity`` (its first pattern)."""
        parameters: dict[str, Any] = {}
        for unit_space in self.units:
            pattern = next(iter(unit_space.levels))
            branch = pattern == patterns.BRANCH  # there is no half of it
            parameters[f"level:{unit_space.unit}"] = 0 if branch else unit_space.nearest(pattern, sparsity)
            if len(unit_space.levels) > 1:
                parameters[f"pattern:{unit_space.unit}"] = pattern
            if len(unit_space.methods) > 1:
                parameters[f"method:{unit_space.unit}"] = method if method in unit_space.methods else unit_space.methods[0]
        return parameters


def _canonical(unit_space: UnitSpace, pattern: str, chosen: str) -> str:
    """Methods that give the same masks: the first of them stands for all."""
    if pattern == patterns.BRANCH:
        return chosen
    form = patterns.get(pattern)
    ranking = method.get(chosen).ranking(form)
    return next((name for name in unit_space.methods if method.get(name).ranking(form) == ranking), chosen)
