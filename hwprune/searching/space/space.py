"""Search space: what may be chosen for each unit, as ordered numbers and few categories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import log10
from typing import Any

from hwprune import patterns
from hwprune.calibration.collect import GRADIENT
from hwprune.errors import UsageError
from hwprune.layers import units
from hwprune.layers.units import Unit
from hwprune.methods import method
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.records.target import Target
from hwprune.searching.space.space_file import SpaceFile


@dataclass(frozen=True, slots=True)
class Knob:
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
    """The knobs of one model on one target, and what was left out and why."""

    file: SpaceFile
    knobs: tuple[Knob, ...]
    compensation: str
    left_out: tuple[tuple[str, str], ...]
    """(unit or pattern, reason)"""
    dead: Callable[[Sequence[str]], Set[str]] = lambda _drop: frozenset()
    """Units that are gone once these branches are dropped."""

    @property
    def size_log10(self) -> float:
        """Decimal logarithm of the number of different recipes."""
        total = 0.0
        for knob in self.knobs:
            options = sum(len(levels) * len(knob.methods) for levels in knob.levels.values())
            total += log10(1 + options)
        return total

    def recipe(self, parameters: Mapping[str, Any]) -> Recipe:
        """Canonical recipe of a sampler's choice: equal prunings give equal recipes."""
        choices = []
        for knob in self.knobs:
            level = int(parameters[f"level:{knob.unit}"])
            if level == 0:
                continue
            pattern = str(parameters.get(f"pattern:{knob.unit}", next(iter(knob.levels))))
            chosen = _canonical(knob, pattern, str(parameters.get(f"method:{knob.unit}", knob.methods[0])))
            for unit in (knob.unit, *knob.tied):
                choices.append(UnitChoice(unit, pattern, knob.sparsity(pattern, level), chosen))
        if drop := [choice.unit for choice in choices if choice.pattern == patterns.BRANCH]:
            dead = self.dead(drop)
            choices = [choice for choice in choices if choice.unit not in dead]
        return Recipe(tuple(choices), self.compensation if choices else "none")

    def uniform(self, sparsity: float, method: str) -> dict[str, Any]:
        """Parameters that give every unit the level nearest to ``sparsity`` (its first pattern)."""
        parameters: dict[str, Any] = {}
        for knob in self.knobs:
            pattern = next(iter(knob.levels))
            branch = pattern == patterns.BRANCH  # there is no half of it
            parameters[f"level:{knob.unit}"] = 0 if branch else knob.nearest(pattern, sparsity)
            if len(knob.levels) > 1:
                parameters[f"pattern:{knob.unit}"] = pattern
            if len(knob.methods) > 1:
                parameters[f"method:{knob.unit}"] = method if method in knob.methods else knob.methods[0]
        return parameters


def _canonical(knob: Knob, pattern: str, chosen: str) -> str:
    """Methods that give the same masks: the first of them stands for all."""
    if pattern == patterns.BRANCH:
        return chosen
    form = patterns.get(pattern)
    ranking = method.get(chosen).ranking(form)
    return next((name for name in knob.methods if method.get(name).ranking(form) == ranking), chosen)


def build(
    space: SpaceFile,
    pruner: Pruner,
    target: Target,
    isa: str,
    all_patterns: bool = False,
    refused: Mapping[str, str | None] | None = None,
) -> SearchSpace:
    """Knobs for every unit that the space names and the target can use.

    Args:
        isa: decides the channel multiple.
        all_patterns: search also what the target does not execute faster.
        refused: mask pattern -> why it does not pay, or None if it does, as measured; it overrules the target's profile.

    Raises:
        UsageError: nothing is left to search; says why, unit by unit.
    """
    left_out: list[tuple[str, str]] = []
    methods = _computable(space, pruner, left_out)
    masks, roles = (_payable(wanted, target, all_patterns, left_out, refused or {}) for wanted in (space.patterns, space.roles))
    for axis in pruner.graph.axes:
        if axis.frozen and axis.role in space.roles:
            left_out.append((axis.name, axis.frozen))
    knobs = []
    for unit in pruner.units.values():
        if any(fnmatchcase(unit.name, glob) for glob in space.exclude):
            left_out.append((unit.name, "excluded by the search space"))
            continue
        if unit.matrix is None and unit.role not in roles:
            if unit.role not in space.roles:
                left_out.append((unit.name, f"role {unit.role} is not in search space {space.name}"))
            continue
        levels = _levels(unit, space, target.multiple(isa), masks, left_out)
        if levels:
            fitting = _methods(unit, methods, levels, pruner, left_out)
            if fitting:
                knobs.append(Knob(unit.name, unit.role, unit.size, levels, fitting))
        elif unit.axis is not None:
            left_out.append((unit.name, f"an axis of {unit.size} has no smaller size that the space allows"))
    if not knobs:
        reasons = [f"{name}: {reason}" for name, reason in left_out]
        raise UsageError(f"nothing to search: search space {space.name} on target {target.name} leaves no unit", reasons)
    if space.tie:
        knobs = _tied(knobs, units.ties(pruner.units))
    return SearchSpace(space, tuple(knobs), pruner.default_compensation(), tuple(left_out), pruner.dead_units)


def _computable(space: SpaceFile, pruner: Pruner, left_out: list[tuple[str, str]]) -> tuple[str, ...]:
    """The methods whose statistics this model and its data can give."""
    found = []
    for name in space.criteria:
        needs = method.get(name).needs
        try:
            if needs and set(needs) & GRADIENT:
                pruner.statistics(needs)
        except UsageError as error:
            left_out.append((name, str(error)))
        else:
            found.append(name)
    return tuple(found)


def _tied(knobs: Sequence[Knob], ties: Mapping[str, str]) -> list[Knob]:
    """One knob for each kind of unit, in the order of the first of each."""
    groups: dict[tuple[str, tuple[str, ...]], list[Knob]] = {}
    for knob in knobs:
        groups.setdefault((ties[knob.unit], tuple(knob.levels)), []).append(knob)
    return [replace(first, tied=tuple(knob.unit for knob in rest)) for first, *rest in groups.values()]


def _payable(
    wanted: Sequence[str],
    target: Target,
    all_patterns: bool,
    left_out: list[tuple[str, str]],
    refused: Mapping[str, str | None],
) -> list[str]:
    """The patterns that can pay on the target; the others go to ``left_out`` with the reason."""
    found = []
    for name in wanted:
        if all_patterns:
            reason = None
        elif name in refused:
            reason = refused[name]
        else:
            by_profile = target.why_not(name)
            reason = by_profile and f"can't pay on {target.name}: {by_profile}"
        if reason:
            left_out.append((name, reason))
        else:
            found.append(name)
    return found


def _levels(
    unit: Unit, space: SpaceFile, multiple: int, masks: list[str], left_out: list[tuple[str, str]]
) -> dict[str, tuple[float, ...]]:
    """Pattern -> sparsities of one unit."""
    if unit.axis is not None:
        return _axis_levels(unit, space, multiple)
    if unit.matrix is not None:
        return _mask_levels(unit, space, masks, left_out)
    return {patterns.BRANCH: (1.0,)}


def _axis_levels(unit: Unit, space: SpaceFile, multiple: int) -> dict[str, tuple[float, ...]]:
    step = 1 if unit.role in ("head", "group") else quantum(unit.size, multiple)
    kept = [k for k in range(step, unit.size, step) if 1 - k / unit.size <= space.max_sparsity + 1e-9]
    kept.reverse()
    if len(kept) > space.levels:
        last = len(kept) - 1
        kept = [kept[round(i * last / max(1, space.levels - 1))] for i in range(space.levels)]
    return {unit.role: tuple(1 - k / unit.size for k in kept)} if kept else {}


def quantum(size: int, multiple: int) -> int:
    """Step of the keep counts: the target's multiple, halved for axes so small that it would leave no choice."""
    while multiple > 4 and size < 2 * multiple:
        multiple //= 2
    return multiple if size >= 2 * multiple else 1


def _mask_levels(unit: Unit, space: SpaceFile, masks: list[str], left_out: list[tuple[str, str]]) -> dict[str, tuple[float, ...]]:
    assert unit.matrix is not None
    found: dict[str, tuple[float, ...]] = {}
    for name in masks:
        pattern = patterns.get(name)
        if reason := pattern.inadmissible(unit.matrix.shape):
            left_out.append((unit.name, f"{name}: {reason}"))
        elif pattern.fixed_sparsity is not None:
            found[name] = (pattern.fixed_sparsity,)
        else:
            found[name] = tuple(sorted(set(space.mask_sparsities)))
    return found


def _methods(
    unit: Unit, names: Sequence[str], levels: Mapping[str, Any], pruner: Pruner, left_out: list[tuple[str, str]]
) -> tuple[str, ...]:
    """The methods that fit the unit, without those that would give the same masks for every pattern of the knob."""
    if patterns.BRANCH in levels:
        return ("drop",)
    forms = [patterns.get(name) for name in levels]
    seen: dict[tuple[str, ...], str] = {}
    for name in names:
        found = method.get(name)
        reasons = [reason for form in forms if (reason := pruner.unavailable(unit, found, form))]
        if reasons:
            left_out.append((unit.name, reasons[0]))
        else:
            seen.setdefault(tuple(found.ranking(form) for form in forms), name)
    return tuple(seen.values())
