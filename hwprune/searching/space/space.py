"""Search space: what may be chosen for each unit, as ordered numbers and few categories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import log10
from random import Random
from typing import Any

from optuna.distributions import BaseDistribution

from hwprune import patterns
from hwprune.methods import method
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.searching.space.space_file import SpaceFile
from hwprune.searching.space.unit_space import UnitSpace


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
            read = unit_space.read(parameters)
            if read is None:
                raise KeyError(unit_space.parameter)
            level, pattern, chosen = read
            if level == 0:
                continue
            chosen = _canonical(unit_space, pattern, chosen)
            for unit in (unit_space.unit, *unit_space.tied):
                choices.append(UnitChoice(unit, pattern, unit_space.sparsity(pattern, level), chosen))
        if drop := [choice.unit for choice in choices if choice.pattern == patterns.BRANCH]:
            dead = self.dead(drop)
            choices = [choice for choice in choices if choice.unit not in dead]
        return Recipe(tuple(choices), self.compensation if choices else "none")

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every parameter."""
        return {name: found for unit_space in self.units for name, found in unit_space.distributions().items()}

    def complete(self, parameters: Mapping[str, Any]) -> bool:
        """Do they say something of every unit?"""
        return all(unit_space.read(parameters) is not None for unit_space in self.units)

    def draw(self, draw: Random) -> dict[str, Any]:
        """Parameters drawn at random, each level as likely as another."""
        parameters: dict[str, Any] = {}
        for unit_space in self.units:
            level = draw.randint(0, unit_space.depth)
            parameters |= unit_space.parameters(level, draw.choice(tuple(unit_space.levels)), draw.choice(unit_space.methods))
        return parameters

    def uniform(self, sparsity: float, method: str) -> dict[str, Any]:
        """Parameters that give every unit the level nearest to ``sparsity`` (its first pattern)."""
        parameters: dict[str, Any] = {}
        for unit_space in self.units:
            pattern = next(iter(unit_space.levels))
            level = 0 if unit_space.is_branch else unit_space.nearest(pattern, sparsity)  # there is no half of a branch
            parameters |= unit_space.parameters(level, pattern, method if method in unit_space.methods else None)
        return parameters


def _canonical(unit_space: UnitSpace, pattern: str, chosen: str) -> str:
    """Methods that give the same masks: the first of them stands for all."""
    if pattern == patterns.BRANCH or pattern in patterns.TOKENS:
        return chosen
    form = patterns.get(pattern)
    ranking = method.get(chosen).ranking(form)
    return next((name for name in unit_space.methods if method.get(name).ranking(form) == ranking), chosen)
