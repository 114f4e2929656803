"""Does a recipe fit a model? And what of it cuts, what masks, what drops."""

from __future__ import annotations

from collections.abc import Mapping

from hwprune import patterns
from hwprune.errors import UsageError
from hwprune.layers import units as unit_table
from hwprune.layers.units import Unit
from hwprune.methods import method
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.structure.model_graph import ModelGraph


def divide(
    recipe: Recipe, graph: ModelGraph, units: Mapping[str, Unit]
) -> tuple[list[UnitChoice], list[UnitChoice], tuple[str, ...]]:
    """The choices that cut axes, those that mask what is left, and the branches to drop."""
    drop = tuple(choice.unit for choice in recipe.choices if choice.pattern == patterns.BRANCH)
    cuts: list[UnitChoice] = []
    rest: list[UnitChoice] = []
    faults: list[str] = []
    for choice in recipe.choices:
        try:
            unit = unit_table.get(units, choice.unit)
            if (unit.branch is not None) != (choice.pattern == patterns.BRANCH):
                faults.append(f"unit {unit.name} has role {unit.role}, the recipe chooses pattern {choice.pattern}")
                continue
            if unit.branch is not None:
                continue
            if unit.tokens is not None:
                if (choice.pattern, choice.method) != (unit.role, patterns.TOKENS[unit.role]):
                    asked = f"pattern {choice.pattern} by {choice.method}"
                    faults.append(f"unit {unit.name} takes pattern {unit.role} by {patterns.TOKENS[unit.role]}, got {asked}")
                cuts.append(choice)
                continue
            pattern = patterns.get(choice.pattern)
            method.get(choice.method)
            fixed = pattern.fixed_sparsity
            if fixed is not None and abs(fixed - choice.sparsity) > 1e-6:
                faults.append(f"pattern {pattern.name} removes {fixed:g} of {unit.name}, not {choice.sparsity:g}")
        except UsageError as error:
            faults.append(str(error))
            continue
        wanted = unit.role if unit.axis is not None else "a mask pattern"
        if (unit.axis is not None and pattern.name != unit.role) or (unit.axis is None and patterns.is_axis(pattern.name)):
            faults.append(f"unit {unit.name} takes pattern {wanted}, got {pattern.name}")
        (cuts if unit.axis is not None else rest).append(choice)
    if faults:
        raise UsageError("the recipe does not fit this model:", faults)
    dead = graph.dead(drop)
    gone = graph.dead_tokens(drop)
    return [choice for choice in cuts if choice.unit not in gone], [choice for choice in rest if choice.unit not in dead], drop
