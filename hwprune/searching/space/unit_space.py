"""What may be chosen for one unit, and how a choice is written as Optuna's parameters.

People read these parameters in Optuna's dashboard, so their names say what is counted (``blocks.0.conv1: channels kept``) and
their values what is kept (48 of 64 channels, 50 % of the weights, a branch "kept" or "dropped"). Inside, a choice is a level: an
index that grows with the sparsity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hwprune import patterns

KEPT, DROPPED = "kept", "dropped"
"""Values of a branch's parameter."""


@dataclass(frozen=True, slots=True)
class UnitSpace:
    """What may be chosen for one unit.

    ``levels[pattern]``: sparsities in rising order. Level 0 is dense, level i is ``levels[pattern][i - 1]``; a
    pattern with fewer levels than another repeats its last one. ``tied``: units that follow its decision. ``label``: the unit's
    name for people; empty: the unit's own.
    """

    unit: str
    role: str
    size: int
    levels: Mapping[str, tuple[float, ...]]
    methods: tuple[str, ...]
    tied: tuple[str, ...] = ()
    label: str = ""

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

    @property
    def is_branch(self) -> bool:
        return patterns.BRANCH in self.levels

    @property
    def parameter(self) -> str:
        """Name of the parameter that says how much is kept."""
        name = self.label or self.unit
        if self.is_branch:
            return name
        return f"{name} kept" if self._whole is not None else f"{name} kept (%)"

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each parameter; pattern and criterion only where there is more than one."""
        found: dict[str, BaseDistribution] = {self.parameter: self._amounts()}
        if len(self.levels) > 1:
            found[self._pattern] = CategoricalDistribution(tuple(self.levels))
        if len(self.methods) > 1:
            found[self._method] = CategoricalDistribution(self.methods)
        return found

    def parameters(self, level: int, pattern: str | None = None, method: str | None = None) -> dict[str, Any]:
        """The parameters of a choice; None: the first pattern, the first method."""
        pattern = pattern or next(iter(self.levels))
        found: dict[str, Any] = {self.parameter: self._amount(pattern, level)}
        if len(self.levels) > 1:
            found[self._pattern] = pattern
        if len(self.methods) > 1:
            found[self._method] = method or self.methods[0]
        return found

    def read(self, parameters: Mapping[str, Any]) -> tuple[int, str, str] | None:
        """(level, pattern, method) that parameters say; None: they say nothing of this unit.

        An amount that no level has means the nearest one: samplers of Optuna draw numbers in between. Older studies spell a
        choice as ``level:UNIT``, ``pattern:UNIT`` and ``method:UNIT``; these are read too.
        """
        if (old := f"level:{self.unit}") in parameters:
            pattern = str(parameters.get(f"pattern:{self.unit}", next(iter(self.levels))))
            level = min(int(parameters[old]), len(self.levels[pattern]))
            return level, pattern, str(parameters.get(f"method:{self.unit}", self.methods[0]))
        if self.parameter not in parameters:
            return None
        pattern = str(parameters.get(self._pattern, next(iter(self.levels))))
        method = str(parameters.get(self._method, self.methods[0]))
        amount = parameters[self.parameter]
        if self.is_branch:
            return int(amount == DROPPED), pattern, method
        amounts = [self._amount(pattern, level) for level in range(len(self.levels[pattern]) + 1)]
        return min(range(len(amounts)), key=lambda i: (abs(amounts[i] - amount), i)), pattern, method

    @property
    def _pattern(self) -> str:
        return f"{self.label or self.unit}, pattern"

    @property
    def _method(self) -> str:
        return f"{self.label or self.unit}, criterion"

    @property
    def _whole(self) -> int | None:
        """The size, where every level keeps a whole number of it that no other level keeps; else None, and per cent are told."""
        if len(self.levels) > 1 or not patterns.is_axis(next(iter(self.levels))):
            return None
        (levels,) = self.levels.values()
        kept = {self.size - round(sparsity * self.size) for sparsity in levels} | {self.size}
        return self.size if len(kept) == len(levels) + 1 else None

    def _amount(self, pattern: str, level: int) -> Any:
        """What a level keeps: "kept" or "dropped", a count, or per cent."""
        if self.is_branch:
            return DROPPED if level else KEPT
        sparsity = self.sparsity(pattern, level) if level else 0.0
        if (size := self._whole) is not None:
            return size - round(sparsity * size)
        return round(100 * (1 - sparsity), 4)

    def _amounts(self) -> BaseDistribution:
        if self.is_branch:
            return CategoricalDistribution((KEPT, DROPPED))
        known = sorted({self._amount(pattern, level) for pattern in self.levels for level in range(self.depth + 1)})
        if any(amount != int(amount) for amount in known):
            return FloatDistribution(known[0], known[-1])
        step = math.gcd(*(int(b - a) for a, b in itertools.pairwise(known))) or 1
        return IntDistribution(int(known[0]), int(known[-1]), step=step)
