"""Uniform recipes: the same sparsity for every unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hwprune import patterns
from hwprune.calibration import collect
from hwprune.errors import UsageError
from hwprune.layers.part import READS
from hwprune.layers.units import Unit
from hwprune.methods import method
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe, UnitChoice, uniform
from hwprune.workload.workload import Workload


def uniform_recipe(
    workload: Workload | Pruner,
    pattern: str,
    sparsity: float,
    criterion: str = "l2",
    compensation: str | None = None,
    scope: str = "unit",
) -> Recipe:
    """A recipe with the same choice for every unit that ``pattern`` fits.

    Args:
        workload: or a `Pruner` of it, which keeps what calibration learned.
        pattern: a role (``channel``, ``head``, ``neuron``), a mask pattern (``2:4``, ``unstructured``), ``branch``, ``token`` or
            ``merge``.
        sparsity: of every unit; of all units together with scope ``global``; for branches the fraction of them that goes; of the
            tokens that arrive at each place where some can go.
        criterion: or a method; branches are ranked by ``block_influence`` (the only one), or all go at sparsity 1.
        compensation: default: what the model has use for.
        scope: ``unit``: every unit loses the same share. ``global``: scores of all units compete, for single weights; made for
            criteria whose scores are comparable across layers (lamp, taylor, obd).

    Raises:
        UsageError: no unit of the model takes the pattern, or the criterion does not fit.
    """
    pruner = workload if isinstance(workload, Pruner) else Pruner(workload)
    name = pruner.workload.name
    if compensation is None:
        compensation = pruner.default_compensation()
    _check_scope(scope, pattern)
    if pattern == patterns.BRANCH:
        return uniform(_branches(pruner, sparsity), pattern, 1.0, "drop", compensation)
    if pattern in patterns.TOKENS:
        return _tokens(pruner, pattern, sparsity, compensation)
    resolved_pattern, resolved_method = patterns.get(pattern), method.get(criterion)
    if patterns.is_axis(resolved_pattern.name):
        units = [u for u in pruner.units.values() if u.axis is not None and u.role == resolved_pattern.name]
    else:
        units = [u for u in pruner.units.values() if u.matrix is not None and not resolved_pattern.inadmissible(u.matrix.shape)]
    if not units:
        why = f": {pruner.untraceable}" if pruner.untraceable and patterns.is_axis(resolved_pattern.name) else ""
        raise UsageError(f"no unit of {name} takes pattern {pattern}{why}")
    reasons = _unavailable(pruner, units, resolved_method, resolved_pattern)
    if len(reasons) == len(units):
        raise UsageError(
            f"no unit of {name} takes pattern {pattern} with {criterion}:", [f"{u}: {r}" for u, r in reasons.items()]
        )
    units = [unit for unit in units if unit.name not in reasons]
    if scope == "global":
        return Recipe(_global_choices(pruner, units, resolved_pattern, resolved_method, sparsity), compensation)
    level = resolved_pattern.fixed_sparsity if resolved_pattern.fixed_sparsity is not None else sparsity
    if not 0 < level < 1:
        raise UsageError(f"sparsity of pattern {pattern} must be in (0, 1), got {sparsity:g}")
    if patterns.is_axis(resolved_pattern.name):
        # An axis so short that rounding would remove nothing, or everything, stays.
        units = [unit for unit in units if 1 <= round(level * unit.size) < unit.size]
        if not units:
            raise UsageError(f"sparsity {sparsity:g} removes nothing from any {pattern} axis of {name}")
    return uniform([unit.name for unit in units], pattern, level, criterion, compensation)


def _check_scope(scope: str, pattern: str) -> None:
    if scope not in ("unit", "global"):
        raise UsageError(f"scope must be unit or global, got {scope!r}")
    if scope == "global" and pattern != "unstructured":
        raise UsageError(f"scope global is for pattern unstructured, got {pattern}")


def _tokens(pruner: Pruner, pattern: str, sparsity: float, compensation: str) -> Recipe:
    """The same share of the tokens that arrive goes at every border."""
    units = [unit for unit in pruner.units.values() if unit.tokens is not None and unit.role == pattern]
    if not units:
        reason = pruner.graph.token_reason or "there are none of this form"
        raise UsageError(f"no unit of {pruner.workload.name} takes pattern {pattern}: {reason}")
    if not 0 < sparsity < 1:
        raise UsageError(f"sparsity of pattern {pattern} must be in (0, 1), got {sparsity:g}")
    if not 1 <= round(sparsity * units[0].size) < units[0].size:
        raise UsageError(f"sparsity {sparsity:g} removes none, or all, of {units[0].size} tokens")
    return uniform([unit.name for unit in units], pattern, sparsity, patterns.TOKENS[pattern], compensation)


def _unavailable(
    pruner: Pruner, units: Sequence[Unit], resolved_method: method.Method, pattern: patterns.Pattern
) -> dict[str, str]:
    """Unit -> why the method can't be used for it, the data included."""
    reasons = {unit.name: reason for unit in units if (reason := pruner.unavailable(unit, resolved_method, pattern))}
    if resolved_method.needs:
        layers = pruner.statistics(resolved_method.needs).layers
        for unit in units:
            read = [part.parameter for part in unit.parts if part.kind == READS]
            if unit.name not in reasons and any(
                name not in layers or layers[name].missing(resolved_method.needs) for name in read
            ):
                reasons[unit.name] = f"no statistics for {resolved_method.name}: the data, or the gradient, do not reach it"
    return reasons


def _branches(pruner: Pruner, sparsity: float) -> list[str]:
    """The branches that turn least what passes through them (ShortGPT)."""
    names = [unit.name for unit in pruner.units.values() if unit.branch is not None]
    if not names:
        raise UsageError(f"{pruner.workload.name} has no branch that could be dropped")
    if not 0 < sparsity <= 1:
        raise UsageError(f"sparsity of pattern branch must be in (0, 1], got {sparsity:g}")
    if sparsity == 1:
        return names
    influence = pruner.statistics([collect.INFLUENCE]).influence
    ranked = sorted((name for name in names if name in influence), key=lambda name: influence[name])
    count = round(sparsity * len(names))
    if not 1 <= count <= len(ranked):
        raise UsageError(f"sparsity {sparsity:g} drops {count} of {len(names)} branches: give one that drops at least one")
    return ranked[:count]


def _global_choices(
    pruner: Pruner, units: Sequence[Unit], pattern: patterns.Pattern, resolved_method: method.Method, sparsity: float
) -> tuple[UnitChoice, ...]:
    """One threshold for the scores of all units."""
    if pattern.name != "unstructured" or not isinstance(resolved_method, method.Scored):
        raise UsageError(
            "scope global is for pattern unstructured with a criterion that only scores, "
            f"got {pattern.name} with {resolved_method.name}"
        )
    if not 0 < sparsity < 1:
        raise UsageError(f"sparsity must be in (0, 1), got {sparsity!r}")
    layers = pruner.statistics(resolved_method.needs).layers if resolved_method.needs else None
    scores = {}
    for unit in units:
        (part,) = method.attach(unit.parts, layers)
        scores[unit.name] = resolved_method.criterion.scores(part.tensor, part.statistics).reshape(-1).double().cpu()
    every = torch.cat(list(scores.values()))
    removed = torch.zeros(len(every), dtype=torch.bool)
    removed[torch.argsort(every, stable=True)[: round(sparsity * len(every))]] = True
    choices, start = [], 0
    for name, unit_scores in scores.items():
        gone = min(int(removed[start : start + len(unit_scores)].sum()), len(unit_scores) - 1)
        start += len(unit_scores)
        if gone:
            choices.append(UnitChoice(name, pattern.name, gone / len(unit_scores), resolved_method.name))
    return tuple(choices)
