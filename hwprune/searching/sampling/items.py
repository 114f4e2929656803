"""The items of the knapsack: what a search space's choices cost in error, time and bytes, joined where they hang together.

A branch and the axes inside it are one item: with the branch go its axes, and the choice is one of their levels or no branch
at all. Of the methods that give the same cut, the one with the least error stands for all.

One file because an item is built in one pass: ways of each unit, joint choices, what of them is dominated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from hwprune import compensation, patterns
from hwprune.common.telling import Tell, silent
from hwprune.errors import UsageError
from hwprune.methods.method import Option
from hwprune.pruning.pruner import Pruner
from hwprune.searching.sampling.dominance import undominated
from hwprune.searching.sampling.problem import Choice, Item
from hwprune.searching.sampling.savings import Savings
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.space.unit_space import UnitSpace
from hwprune.searching.study.attributes import FILE

Array = np.ndarray[Any, Any]

UNKNOWN_GAIN = 0.02
"""Share of a layer's time that a mask is taken to save where nothing was measured, or no gain was found and it is searched all
the same: enough to be tried."""
MOST_CHOICES = 64
"""Most choices of one item; beyond, its joint choices are thinned to those that no other dominates, couplings included."""


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """A unit_space at one level: its parameters, what it costs, and how the model answers to it."""

    unit_space: UnitSpace
    level: int
    pattern: str
    method: str
    error: float
    saved: float
    bytes_saved: float
    response: Array | None

    def parameters(self) -> dict[str, Any]:
        return self.unit_space.parameters(self.level, self.pattern, self.method)


def build(
    pruner: Pruner,
    space: SearchSpace,
    savings: Savings,
    pattern_speedups: Mapping[str, float] | None = None,
    step: Tell = silent,
) -> list[Item]:
    """The items of a space.

    Args:
        pattern_speedups: mask pattern -> share of the dense time that it saves when all weights have it, as measured.
    """
    inside = compensation.local_part(space.compensation)
    responses = _responses(pruner, space, inside, step)
    scale = _scale(pruner, space, responses, inside)
    ways = {
        unit_space.unit: _ways(pruner, unit_space, savings, responses, inside, pattern_speedups or {}, scale)
        for unit_space in space.units
    }
    groups = _groups(space)
    return [_item(group, ways, space, savings) for group in groups]


def canonical(space: SearchSpace, items: Sequence[Item]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Turns any parameters of the space into those of the choice that stands for them: its method, dense spelled one way."""
    methods: dict[tuple[str, str, int], str] = {}
    table = {unit_space.unit: unit_space for unit_space in space.units}
    for item in items:
        for choice in item.choices:
            for unit, level in choice.levels:
                if unit in table and (read := table[unit].read(choice.parameters)) is not None:
                    methods[unit, read[1], level] = read[2]

    def turn(parameters: Mapping[str, Any]) -> dict[str, Any]:
        chosen = {unit_space.unit: unit_space.read(parameters) for unit_space in space.units}
        dropped = [
            unit
            for unit_space in space.units
            if unit_space.is_branch and (read := chosen[unit_space.unit]) is not None and read[0]
            for unit in (unit_space.unit, *unit_space.tied)
        ]
        gone = space.dead(dropped) if dropped else frozenset()
        found: dict[str, Any] = {}
        for unit_space in space.units:
            unit = unit_space.unit
            read = chosen[unit]
            if read is None:
                continue
            level, pattern, method = read
            if not unit_space.is_branch and not gone.isdisjoint((unit, *unit_space.tied)):
                level = 0
            if not level:
                pattern = next(iter(unit_space.levels))
            found |= unit_space.parameters(level, pattern, methods.get((unit, pattern, level), method))
        return found

    return turn


def _responses(pruner: Pruner, space: SearchSpace, inside: str, step: Tell) -> dict[tuple[str, str, str], Array]:
    """(unit, pattern, method) -> (examples, levels); empty if the outputs have no gradient."""
    wanted: dict[tuple[str, str, str], tuple[float, ...]] = {}
    branches: list[str] = []
    for unit_space in space.units:
        for unit in (unit_space.unit, *unit_space.tied):
            for pattern, levels in unit_space.levels.items():
                if pattern == patterns.BRANCH:
                    branches.append(unit)
                    continue
                wanted |= {(unit, pattern, method): levels for method in unit_space.methods}
    try:
        found = pruner.responses(wanted, branches, inside, step)
    except (UsageError, RuntimeError, NotImplementedError):
        # The outputs have no gradient, an operator has no derivative, or memory does not suffice: local errors have to do.
        return {}
    return {key: value.numpy().astype(np.float64) for key, value in found.items()}


def _ways(
    pruner: Pruner,
    unit_space: UnitSpace,
    savings: Savings,
    responses: Mapping[tuple[str, str, str], Array],
    inside: str,
    pattern_speedups: Mapping[str, float],
    scale: float,
) -> list[_Way]:
    """Every level of every pattern, each by its best method; the dense one first."""
    first = next(iter(unit_space.levels))
    found = [_Way(unit_space, 0, first, unit_space.methods[0], 0.0, 0.0, 0.0, None)]
    for pattern, levels in unit_space.levels.items():
        for level in range(1, len(levels) + 1):
            best: tuple[float, str, Array | None] | None = None
            for method in unit_space.methods:
                error, response = _error(pruner, unit_space, pattern, level, method, responses, inside, scale)
                if best is None or error < best[0]:
                    best = (error, method, response)
            assert best is not None
            smaller = 0
            if pattern == patterns.BRANCH or patterns.is_axis(pattern):
                saved, smaller = (
                    savings.saved.get((unit_space.unit, level), 0.0),
                    savings.bytes_saved.get((unit_space.unit, level), 0),
                )
            else:
                share = sum(savings.share.get(unit, 0.0) for unit in (unit_space.unit, *unit_space.tied))
                masked = sum(savings.share.values()) or 1.0  # what the whole-model measurement had masked
                saved = max(pattern_speedups.get(pattern, 0.0) / masked, UNKNOWN_GAIN) * share * levels[level - 1] / max(levels)
            found.append(_Way(unit_space, level, pattern, best[1], best[0], saved, smaller, best[2]))
    return found


def _error(
    pruner: Pruner,
    unit_space: UnitSpace,
    pattern: str,
    level: int,
    method: str,
    responses: Mapping[tuple[str, str, str], Array],
    inside: str,
    scale: float,
) -> tuple[float, Array | None]:
    """Predicted divergence of a level, with its response; from the local error where no gradient is to be had."""
    total: Array | None = None
    for unit in (unit_space.unit, *unit_space.tied):
        rows = responses.get((unit, pattern, method))
        if rows is not None and rows.shape[1] >= level:
            own = rows[:, level - 1]
            total = own if total is None else total + own
    if total is not None and float(np.square(total).mean()) > 0:
        return float(np.square(total).mean()) / 2, total
    if pattern == patterns.BRANCH:
        influence = pruner.statistics(["influence"]).influence
        return scale * sum(influence.get(unit, 1.0) for unit in (unit_space.unit, *unit_space.tied)), None
    options: list[Option] = [
        pruner.options(unit, pattern, method, unit_space.levels[pattern], inside)[level - 1]
        for unit in (unit_space.unit, *unit_space.tied)
    ]
    return scale * sum(max(option.error, 0.0) for option in options), None


def _scale(pruner: Pruner, space: SearchSpace, responses: Mapping[tuple[str, str, str], Array], inside: str) -> float:
    """Predicted divergence over local error, for units that have no response where others have one."""
    wanted = [
        (unit, pattern, method)
        for unit_space in space.units
        for unit in (unit_space.unit, *unit_space.tied)
        for pattern in unit_space.levels
        for method in unit_space.methods
        if pattern != patterns.BRANCH
    ]
    if not responses or all(key in responses for key in wanted):
        return 1.0
    levels = {unit: unit_space.levels for unit_space in space.units for unit in (unit_space.unit, *unit_space.tied)}
    ratios = []
    for unit, pattern, method in wanted:
        rows = responses.get((unit, pattern, method))
        if rows is not None:
            local = [option.error for option in pruner.options(unit, pattern, method, levels[unit][pattern], inside)]
            told = np.square(rows).mean(axis=0) / 2
            ratios += [t / e for t, e in zip(told.tolist(), local, strict=True) if e > 0 and t > 0]
    return float(np.median(ratios)) if ratios else 1.0


def _groups(space: SearchSpace) -> list[list[UnitSpace]]:
    """Knobs that must be decided together: a branch, and what is inside it."""
    parent = {unit_space.unit: unit_space.unit for unit_space in space.units}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for unit_space in space.units:
        if patterns.BRANCH not in unit_space.levels:
            continue
        gone = space.dead((unit_space.unit, *unit_space.tied))
        for other in space.units:
            if other.unit != unit_space.unit and not gone.isdisjoint((other.unit, *other.tied)):
                parent[root(other.unit)] = root(unit_space.unit)
    groups: dict[str, list[UnitSpace]] = {}
    for unit_space in space.units:
        groups.setdefault(root(unit_space.unit), []).append(unit_space)
    return list(groups.values())


def _item(group: Sequence[UnitSpace], ways: Mapping[str, Sequence[_Way]], space: SearchSpace, savings: Savings) -> Item:
    """Joint choices of a group; the dense one first."""
    branches = [unit_space for unit_space in group if patterns.BRANCH in unit_space.levels]
    rest = [unit_space for unit_space in group if patterns.BRANCH not in unit_space.levels]
    choices: list[Choice] = []
    states: list[tuple[UnitSpace, ...]] = [()]
    states += [(unit_space,) for unit_space in branches]
    if len(branches) > 1:
        states.append(tuple(branches))
    for dropped in states:
        names = [unit for unit_space in dropped for unit in (unit_space.unit, *unit_space.tied)]
        gone = space.dead(names) if names else frozenset()
        fixed = [ways[unit_space.unit][1 if unit_space in dropped else 0] for unit_space in branches]
        if any(unit_space in dropped and unit_space.unit in gone for unit_space in branches):
            continue  # a branch inside another one that goes: the same as without saying so
        alive = [unit_space for unit_space in rest if gone.isdisjoint((unit_space.unit, *unit_space.tied))]
        dead = [ways[unit_space.unit][0] for unit_space in rest if unit_space not in alive]
        joint: list[tuple[_Way, ...]] = [()]
        for unit_space in alive:
            joint = [(*one, way) for one, way in product(joint, ways[unit_space.unit])]
            joint = _thinned(joint, savings)
        choices += [_choice((*fixed, *dead, *one), savings) for one in joint]
    dense = next(i for i, choice in enumerate(choices) if not any(level for _, level in choice.levels))
    choices.insert(0, choices.pop(dense))
    return Item(group[0].unit, tuple(choices))


def _thinned(joint: Sequence[tuple[_Way, ...]], savings: Savings) -> list[tuple[_Way, ...]]:
    """Joint choices, `MOST_CHOICES` and the dense one at most: those that no other beats whatever is chosen elsewhere.

    Where even those are too many, most of them are ones that none beats by their own price.
    """
    if len(joint) <= MOST_CHOICES:
        return list(joint)
    made = [_choice(one, savings) for one in joint]
    times, errors = [-choice.saved for choice in made], [choice.error for choice in made]
    alone = undominated(times, errors)
    losses = [[-choice.saves[FILE] for choice in made], *_coupling_losses(made, savings)]
    with_others = [i for i in undominated(times, errors, losses) if i not in set(alone)]
    kept = _evenly(alone, max(MOST_CHOICES - len(with_others), MOST_CHOICES * 3 // 4))
    kept += _evenly(with_others, MOST_CHOICES - len(kept))
    dense = next(i for i, choice in enumerate(made) if not any(level for _, level in choice.levels))
    return [joint[i] for i in dict.fromkeys([dense, *kept])]


def _coupling_losses(made: Sequence[Choice], savings: Savings) -> list[list[float]]:
    """For each level of each unit that the choices don't decide on: the time that each choice loses together with it."""
    own = {unit for unit, _ in made[0].levels}
    levels = [dict(choice.levels) for choice in made]
    found: dict[tuple[str, int], Array] = {}
    for (a, b), given in savings.coupled.items():
        if (a in own) == (b in own):
            continue  # inside it is in the price already; outside it says nothing of these
        unit, other, table = (a, b, given) if a in own else (b, a, given.T)
        losses = -table[[level[unit] for level in levels]]
        for level in range(table.shape[1]):
            found[other, level] = found.get((other, level), 0.0) + losses[:, level]
    return [row.tolist() for row in found.values()]


def _evenly(kept: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly from the first to the last."""
    if len(kept) <= most:
        return list(kept)
    return [kept[round(i * (len(kept) - 1) / (most - 1))] for i in range(most)]


def _choice(ways: Sequence[_Way], savings: Savings) -> Choice:
    parameters: dict[str, Any] = {}
    for way in ways:
        parameters |= way.parameters()
    active = [way for way in ways if way.level]
    known = [way.response for way in active if way.response is not None]
    alone = sum(way.error for way in active if way.response is None)
    response = np.sum(known, axis=0) if known and not alone else None
    error = float(np.square(response).mean()) / 2 if response is not None else sum(way.error for way in active)
    saved = sum(way.saved for way in active)
    level = {way.unit_space.unit: way.level for way in ways}
    for (a, b), table in savings.coupled.items():
        if a in level and b in level:
            saved += float(table[level[a], level[b]])
    smaller = sum(way.bytes_saved for way in active)
    levels = tuple((way.unit_space.unit, way.level) for way in ways)
    kind = max(active, key=lambda way: way.error).pattern if active else ""
    return Choice(parameters, error, saved, {FILE: smaller}, response, levels, kind)
