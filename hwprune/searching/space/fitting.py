"""Fitting a search space to one model on one target: which units, levels, patterns and methods are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from hwprune import compensation, patterns
from hwprune.calibration.collect import GRADIENT
from hwprune.common.telling import Tell
from hwprune.errors import UsageError
from hwprune.layers import units
from hwprune.layers.labels import labels
from hwprune.layers.units import Unit
from hwprune.methods import method
from hwprune.pruning.pruner import Pruner
from hwprune.records.target import Target
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.space.space_file import SpaceFile
from hwprune.searching.space.unit_space import UnitSpace
from hwprune.structure.borders import MERGE

FREE_LENGTH = (
    "the model takes any number of tokens, and would take only one if some go: fixed_length = true, as in --space tokens"
)
ENOUGH_LEVELS = 3
"""Smaller sizes that an axis has at least, where it is large enough."""


def build(
    space: SpaceFile,
    pruner: Pruner,
    target: Target,
    isa: str,
    *,
    all_patterns: bool = False,
    refused: Mapping[str, str | None] | None = None,
) -> SearchSpace:
    """Levels, patterns and methods for every unit that the space names and the target can use.

    Args:
        isa: decides the channel multiple.
        all_patterns: search also what the target does not execute faster.
        refused: mask pattern -> why it does not pay, or None if it does, as measured; it overrules the target's profile.

    Raises:
        UsageError: nothing is left to search; says why, unit by unit.
    """
    left_out: list[tuple[str, str]] = []
    methods = _computable(space, pruner, left_out)
    masks, roles = (
        _payable(wanted, target, all_patterns=all_patterns, left_out=left_out, refused=refused or {})
        for wanted in (space.patterns, space.roles)
    )
    for axis in pruner.graph.axes:
        if axis.frozen and axis.role in space.roles:
            left_out.append((axis.name, axis.frozen))
    names = labels(pruner.units.values())
    unit_spaces = []
    for unit in pruner.units.values():
        reason = _reason(unit, space, roles, free_length=bool(pruner.graph.module.meta.get("free_length")))
        if reason is not None:
            left_out += [(unit.name, reason)] if reason else []
            continue
        levels = _levels(unit, space, target.multiple(isa), masks, left_out)
        if levels:
            fitting = _methods(unit, methods, levels, pruner, left_out)
            if fitting:
                unit_spaces.append(UnitSpace(unit.name, unit.role, unit.size, levels, fitting, label=names[unit.name]))
        elif unit.axis is not None or unit.tokens is not None:
            left_out.append((unit.name, f"an axis of {unit.size} has no smaller size that the space allows"))
    if not unit_spaces:
        reasons = [f"{name}: {reason}" for name, reason in left_out]
        raise UsageError(f"nothing to search: search space {space.name} on target {target.name} leaves no unit", reasons)
    if space.tie:
        unit_spaces = _tied(unit_spaces, units.ties(pruner.units))
    return SearchSpace(space, tuple(unit_spaces), pruner.default_compensation(), tuple(left_out), pruner.dead_units)


def _reason(unit: Unit, space: SpaceFile, roles: Sequence[str], *, free_length: bool) -> str | None:
    """Why a unit is not searched, empty where that is told of its whole role; None: it is.

    Args:
        roles: those that pay on the target.
        free_length: the model takes any number of tokens.
    """
    if any(fnmatchcase(unit.name, glob) for glob in space.exclude):
        return "excluded by the search space"
    if unit.matrix is None and unit.role not in roles:
        return "" if unit.role in space.roles else f"role {unit.role} is not in search space {space.name}"
    if unit.tokens is not None and free_length and not space.fixed_length:
        return FREE_LENGTH
    return None


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


def _tied(unit_spaces: Sequence[UnitSpace], ties: Mapping[str, str]) -> list[UnitSpace]:
    """One unit_space for each kind of unit, in the order of the first of each."""
    groups: dict[tuple[str, tuple[str, ...]], list[UnitSpace]] = {}
    for unit_space in unit_spaces:
        groups.setdefault((ties[unit_space.unit], tuple(unit_space.levels)), []).append(unit_space)
    return [
        replace(first, tied=tuple(other.unit for other in rest), label=f"{first.label} and {len(rest)} like it")
        if rest
        else first
        for first, *rest in groups.values()
    ]


def _payable(
    wanted: Sequence[str],
    target: Target,
    *,
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
    if unit.tokens is not None:
        found = _axis_levels(unit, space, 1)
        most = 0.5 if unit.role == MERGE else 1.0  # of tokens that are merged half are left at least
        return {pattern: tuple(s for s in levels if s <= most) for pattern, levels in found.items() if min(levels) <= most}
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
    """Tell of the keep counts: the target's multiple, halved for axes so small that it would leave fewer than `ENOUGH_LEVELS`.

    Sizes beside the multiple may well be slower than it says; what each really saves is measured before it is proposed.
    """
    while multiple > 1 and size < (ENOUGH_LEVELS + 1) * multiple:
        multiple //= 2
    return multiple


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
    """The methods that fit the unit, without those that would give the same masks for every pattern of the unit_space."""
    if patterns.BRANCH in levels:
        return ("drop",)
    if unit.tokens is not None:
        return (patterns.TOKENS[unit.role],)
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


def fit(
    space: SpaceFile,
    pruner: Pruner,
    target: Target,
    isa: str,
    *,
    all_patterns: bool,
    refused: Mapping[str, str | None],
    recover: str | None,
) -> tuple[SearchSpace, list[str]]:
    """The space of `build` with the compensation that trials get, and notes on what has no use here.

    Args:
        recover: compensations that the user asks for, joined by ``+``; None: what the model has use for.
    """
    fitted = build(space, pruner, target, isa, all_patterns=all_patterns, refused=refused)
    if recover is None:
        return fitted, []
    steps = compensation.parse(recover)
    useful = [step.name for step in steps if step.applies(pruner.graph.module)]
    notes = [f"--recover {step.name} has nothing to do in this model." for step in steps if step.name not in useful]
    return replace(fitted, compensation="+".join(useful) or compensation.NONE), notes


def solve_options(pruner: Pruner, space: SearchSpace, stage: Tell) -> None:
    """Compute every option of the axes before the first trial: a trace gives all levels at once."""
    inside = compensation.local_part(space.compensation)
    wanted = [(name, unit) for unit in space.units for name in (unit.unit, *unit.tied) if pruner.units[name].axis is not None]
    if inside == compensation.NONE and not any(method.get(name).needs for _, unit in wanted for name in unit.methods):
        return  # scores alone are quick
    for number, (name, unit) in enumerate(wanted):
        stage(f"pruning {name} in every way", number, len(wanted))
        for pattern, levels in unit.levels.items():
            for chosen in unit.methods:
                pruner.options(name, pattern, chosen, levels, inside)
