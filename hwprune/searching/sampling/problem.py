"""The allocation problem: items, their choices, limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from hwprune.searching.sampling.dominance import undominated

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One option of an item.

    Attributes:
        parameters: Optuna parameters that say it.
        error: divergence that it alone is expected to cause, >= 0 in any common scale; 0 for the dense option.
        saved: share of the dense model's time that it saves; negative if it is slower.
        saves: of other resources that add up: bytes of the file, bytes in memory while a certain layer runs, ...
        response: (examples,) signed responses whose mean square over two is ``error``, for interactions; or None.
        levels: (unit, level) that it stands for, for couplings.
        kind: what is done, ``branch`` or ``neuron`` for instance: errors of one kind are wrong alike.
    """

    parameters: Mapping[str, Any]
    error: float
    saved: float
    saves: Mapping[str, float] = field(default_factory=dict)
    response: Array | None = None
    levels: tuple[tuple[str, int], ...] = ()
    kind: str = ""

    def __post_init__(self) -> None:
        if not (np.isfinite([self.error, self.saved, *self.saves.values()]).all() and self.error >= 0):
            raise ValueError(
                f"an option needs a finite error >= 0 and finite savings, got {self.error}, {self.saved}, {dict(self.saves)}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """Things that are decided on together: exactly one choice is taken. The first choice is the dense one."""

    name: str
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError(f"item {self.name} has no choice")
        names = set(self.choices[0].parameters)
        if any(set(choice.parameters) != names for choice in self.choices):
            raise ValueError(f"every choice of item {self.name} must set the same parameters: {', '.join(sorted(names))}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a candidate must keep to be of use; None: no limit.

    Attributes:
        max_drop: of the first objective.
        max_ratio: of the latency as a share of dense.
        min_saved: of each resource that `Choice.saves` names. A limit on something that is the largest of several sums (memory at
            its peak) is a limit on each of them.
        reference_drop: the worst drop that still counts where there is no ``max_drop``.
    """

    max_drop: float | None = None
    max_ratio: float | None = None
    min_saved: Mapping[str, float] = field(default_factory=dict)
    reference_drop: float = 0.05

    @property
    def reference(self) -> tuple[float, float]:
        """Worst corner of the hypervolume. A little beyond the limit on the drop: validation decides it only roughly."""
        drop = self.reference_drop if self.max_drop is None else 1.25 * self.max_drop + 0.002
        return drop, 1.0 if self.max_ratio is None else min(1.0, 1.02 * self.max_ratio)


def response_gram(items: Sequence[Item]) -> Array | None:
    """(all options, all options): inner products of responses over 2; None if too many, or an item has none."""
    choices = [choice for item in items for choice in item.choices]
    if len(choices) > 4000 or not any(choice.response is not None for choice in choices):
        return None
    count = max(len(c.response) for c in choices if c.response is not None)
    rows = np.stack([np.zeros(count) if c.response is None else c.response for c in choices])
    found: Array = rows @ rows.T / (2 * count)
    # What has an error but no response stands alone.
    alone = np.array([c.error if c.response is None else 0.0 for c in choices])
    found[np.diag_indices_from(found)] += alone
    return found


def item_couplings(items: Sequence[Item], coupled: Mapping[tuple[str, str], Array]) -> dict[tuple[int, int], Array]:
    """Couplings between units as couplings between items (or, inside one item, left to its choices' own savings)."""
    where = {unit: place for place, item in enumerate(items) for choice in item.choices for unit, _ in choice.levels}
    found: dict[tuple[int, int], Array] = {}
    for (one, other), given in coupled.items():
        if where.get(one, 0) == where.get(other, 0) or one not in where or other not in where:
            continue
        turned = where[one] > where[other]
        a, b, table = (other, one, given.T) if turned else (one, other, given)
        u, v = where[a], where[b]
        own = found.setdefault((u, v), np.zeros((len(items[u].choices), len(items[v].choices))))
        for i, first in enumerate(items[u].choices):
            for j, second in enumerate(items[v].choices):
                level_a, level_b = dict(first.levels).get(a, 0), dict(second.levels).get(b, 0)
                own[i, j] += table[level_a, level_b]
    return found


def coupled_savings(couplings: Mapping[tuple[int, int], Array], place: int) -> list[list[float]]:
    """What the choices of an item save with each choice of each item that it is coupled with: a row for each of those choices."""
    found: list[list[float]] = []
    for (u, v), table in couplings.items():
        if u == place:
            found += table.T.tolist()
        elif v == place:
            found += table.tolist()
    return found


class AllocationProblem:
    """What there is to decide, as arrays: one choice for each item.

    Args:
        items: what is decided on. Dominated choices are left out of the knapsack.
        coupled: ((unit, unit) -> (level, level) -> share of the time saved beyond the sum), for units named in `Choice.levels`.
        limits: see `Limits`.
        canonical: turns parameters that another sampler chose into those of the choice that stands for them.

    Attributes:
        errors, saved: for each item, of each choice.
        kinds: the same: a number for `Choice.kind`.
        saves: resource -> the same.
        gram: inner products of the choices' responses, see `response_gram`.
        couplings: (item, item) -> (choice, choice) -> share of the time saved beyond the sum.
        useful: for each item, its choices that no other dominates whatever the other items choose, fastest first.
    """

    def __init__(
        self,
        items: Sequence[Item],
        coupled: Mapping[tuple[str, str], Array] | None = None,
        limits: Limits | None = None,
        canonical: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        if not items:
            raise ValueError("a knapsack needs at least one item")
        self.items = tuple(items)
        self.limits = limits or Limits()
        self._canonical = canonical
        self.errors = [np.array([c.error for c in item.choices]) for item in self.items]
        names = sorted({c.kind for item in self.items for c in item.choices if c.error > 0})
        self.kinds = [np.array([names.index(c.kind) if c.error > 0 else 0 for c in item.choices]) for item in self.items]
        self.saved = [np.array([c.saved for c in item.choices]) for item in self.items]
        self.saves = {
            name: [np.array([c.saves.get(name, 0.0) for c in item.choices]) for item in self.items]
            for name in self.limits.min_saved
        }
        self.gram = response_gram(self.items)
        self.couplings = item_couplings(self.items, coupled or {})
        self.useful = [self._undominated(place) for place in range(len(self.items))]
        self._keys = [tuple(sorted(item.choices[0].parameters)) for item in self.items]
        self._places = [
            {tuple(c.parameters[k] for k in keys): i for i, c in reversed(list(enumerate(item.choices)))}
            for item, keys in zip(self.items, self._keys, strict=True)
        ]

    def _undominated(self, place: int) -> list[int]:
        """An item's choices that no other beats in error, time, every other resource and every coupling.

        By itself a choice may be worse than another in everything, and with a neighbour's choice be the best of all.
        """
        gains = [rows[place].tolist() for rows in self.saves.values()] + coupled_savings(self.couplings, place)
        losses = [[-gain for gain in row] for row in gains]
        return undominated((-self.saved[place]).tolist(), self.errors[place].tolist(), losses)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every parameter that the choices name."""
        values: dict[str, list[Any]] = {}
        for item in self.items:
            for choice in item.choices:
                for name, value in choice.parameters.items():
                    known = values.setdefault(name, [])
                    if value not in known:
                        known.append(value)
        distributions: dict[str, BaseDistribution] = {}
        for name, known in values.items():
            whole = all(isinstance(v, int) and not isinstance(v, bool) for v in known)
            distributions[name] = IntDistribution(min(known), max(known)) if whole else CategoricalDistribution(tuple(known))
        return distributions

    def parameters(self, allocation: Sequence[int]) -> dict[str, Any]:
        """The Optuna parameters that an allocation stands for."""
        parameters: dict[str, Any] = {}
        for item, option in zip(self.items, allocation, strict=True):
            parameters |= dict(item.choices[option].parameters)
        return parameters

    def allocation(self, parameters: Mapping[str, Any]) -> Array | None:
        """(items,): the choices that a trial's parameters say; None if they say none of ours."""
        found = []
        if self._canonical is not None and parameters:
            parameters = self._canonical(parameters)
        for keys, places in zip(self._keys, self._places, strict=True):
            place = places.get(tuple(parameters.get(key) for key in keys))
            if place is None:
                return None
            found.append(place)
        return np.array(found, dtype=int)

    def coupling(self, allocations: Array) -> Array:
        """Share of the time that couplings save, for each of (n, items) allocations."""
        share = np.zeros(len(allocations))
        for (u, v), table in self.couplings.items():
            share += table[allocations[:, u], allocations[:, v]]
        return share

    def claimed_savings(self, resource: str, allocations: Array) -> Array:
        """What the choices of each of (n, items) allocations say that they save of a resource."""
        total = np.zeros(len(allocations))
        for u, saves in enumerate(self.saves[resource]):
            total += saves[allocations[:, u]]
        return total
