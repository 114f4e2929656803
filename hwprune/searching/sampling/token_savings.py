"""Prices of fewer tokens at every place from cuts at the first one: what follows with as many tokens left takes the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hwprune import patterns
from hwprune.searching.space.unit_space import UnitSpace

Alone = dict[tuple[str, int], dict[str, float]]
"""(unit, level) -> name -> seconds of the segments that are left of those that a cut touches, and of those that are new."""


def followers(priced: Sequence[UnitSpace]) -> dict[str, UnitSpace]:
    """Places behind the first one at which tokens go in the same form, from as many, to the same levels -> the first one."""
    first: dict[object, UnitSpace] = {}
    found: dict[str, UnitSpace] = {}
    for unit_space in priced:
        pattern = next(iter(unit_space.levels))
        if pattern in patterns.TOKENS:
            leader = first.setdefault((pattern, unit_space.size, unit_space.levels[pattern]), unit_space)
            if leader is not unit_space:
                found[unit_space.unit] = leader
    return found


def follow(
    unit_space: UnitSpace, leader: UnitSpace, touched: frozenset[str], dense: Mapping[str, float], alone: Alone
) -> dict[int, float]:
    """Level -> seconds that a place saves; its segments are entered into ``alone``.

    Args:
        leader: the first place of the same form, all of whose levels were cut.
        touched: names of the segments that the deepest cut of the place changes.
        dense: name -> seconds of the dense model's segments.
        alone: what is known of the cuts that were made.
    """
    saved: dict[int, float] = {}
    for level in range(1, unit_space.depth):
        theirs = alone.get((leader.unit, level))
        if theirs is None:
            continue
        own = {name: theirs.get(name, dense[name]) for name in touched}
        own |= {name: seconds for name, seconds in theirs.items() if name not in dense}  # what chooses, or merges
        alone[unit_space.unit, level] = own
        saved[level] = sum(dense[name] for name in touched) - sum(own.values())
    return saved
