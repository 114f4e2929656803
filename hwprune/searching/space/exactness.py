"""How exactly masks are chosen: exact OBS where the time given suffices for it, SparseGPT's sweep for the other matrices."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from hwprune import compensation, patterns
from hwprune.common import formatting
from hwprune.methods import layerwise, method
from hwprune.pruning.pruner import Pruner
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.space.unit_space import UnitSpace

EXACT, SWEPT = "obs", "sparsegpt"
SHARE = 0.2
"""Share of a search's time that exact masks may take."""
WITHOUT_LIMIT_S = 120.0
"""Seconds that they may take where the search has no limit of time."""


def allowed_seconds(time_s: float) -> float:
    """Seconds for exact masks in a search of so many; 0: no limit."""
    return SHARE * time_s if time_s else WITHOUT_LIMIT_S


def beyond(space: SearchSpace, pruner: Pruner, allowed_s: float) -> tuple[list[str], float]:
    """Units whose masks can't be solved for exactly in the time given, the quick ones first; and what all would have taken.

    Options that the database holds take no time.
    """
    inside = local_compensation(space)
    cost = {unit.unit: _seconds(unit, pruner, inside) for unit in space.units if EXACT in unit.methods}
    swept = []
    spent = 0.0
    for name in sorted(cost, key=lambda name: cost[name]):
        spent += cost[name]
        if spent > allowed_s:
            swept.append(name)
    return swept, sum(cost.values())


def with_sweep(space: SearchSpace, swept: Collection[str]) -> SearchSpace:
    """The space with SparseGPT's sweep in place of exact OBS for these units."""
    return replace(space, units=tuple(_swept(unit) if unit.unit in swept else unit for unit in space.units))


def note(swept: Collection[str], seconds: float, allowed_s: float) -> str:
    """What the user should know of it."""
    return (
        f"Masks of {formatting.some(len(swept), 'unit')} are chosen by SparseGPT's sweep: exact OBS of all matrices would have "
        f"taken about {formatting.duration(seconds)}, of which {formatting.duration(allowed_s)} are allowed here. More --time "
        "gives more exact masks."
    )


def local_compensation(space: SearchSpace) -> str:
    """The compensation that options of single layers get."""
    return compensation.local_part(space.compensation)


def _swept(unit: UnitSpace) -> UnitSpace:
    return replace(unit, methods=tuple(dict.fromkeys(SWEPT if name == EXACT else name for name in unit.methods)))


def _seconds(space: UnitSpace, pruner: Pruner, inside: str) -> float:
    """What the exact masks of a unit and of those tied to it take."""
    total = 0.0
    for name in (space.unit, *space.tied):
        for pattern, levels in space.levels.items():
            if pattern == patterns.BRANCH or patterns.is_axis(pattern) or pruner.held(name, pattern, EXACT, levels, inside):
                continue
            (part,) = method.attach(pruner.units[name].parts, None)
            total += layerwise.exact_seconds(part, patterns.get(pattern), levels)
    return total
