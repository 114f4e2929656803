"""Budgeted allocation: one option for each item, least error within a budget of time. A multiple-choice knapsack, solved exactly.

One pass of dynamic programming over the items gives the optimum for every budget at once (methods 5.4). Times are rounded up
to whole buckets, so that a budget is never exceeded (rounding to nearest, as SPDY does, can miss it by half a bucket an item).
Items whose time also depends on a neighbour's option (a layer between two axes that are both cut) are solved exactly where
the neighbours form chains, or do so around a few items whose options are tried; elsewhere neighbours are fixed in turn.
Several resources at once go to an integer program. One file because all ways to solve it share the buckets and their rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from hwprune.searching.sampling.hubs import promising

Array = np.ndarray[Any, Any]
Pairs = Mapping[tuple[int, int], Array]
"""(item, later item) -> (options, options): time on top of the items' own."""

BUCKETS = 4000
ROUNDS = 5
"""Rounds of fixing neighbours in turn, where couplings form no chain."""
MOST_FIXED = 64
"""Combinations of options of a few items that are tried one by one, so that the rest falls apart into chains."""
MOST_HUBS = 10
"""Items that are fixed so; where it takes more, neighbours are fixed in turn."""


class _Solved(NamedTuple):
    """Chains solved for all budgets.

    Attributes:
        best: (buckets,) least error.
        floor: seconds of the fastest.
        trail: for each item, chain by chain: the item, (option, bucket) -> option of the item before, and weights.
        joins: for each chain (buckets,) the option of its last item.
    """

    best: Array
    floor: float
    trail: tuple[tuple[int, Array, Array], ...]
    joins: tuple[Array, ...]


@dataclass(slots=True)
class Allocation:
    """The optima for all budgets.

    Attributes:
        times: for each item (options,), in seconds.
        errors: for each item (options,), finite and >= 0.
        pairs: coupled items.
        buckets: resolution between the fastest and the slowest allocation.
    """

    times: Sequence[Array]
    errors: Sequence[Array]
    pairs: Pairs = field(default_factory=dict)
    buckets: int = BUCKETS
    _floor: list[float] = field(init=False, default_factory=list)
    _unit: float = field(init=False, default=1.0)
    _choice: list[Array] = field(init=False, default_factory=list)
    _weights: list[Array] = field(init=False, default_factory=list)
    _best: Array = field(init=False, default_factory=lambda: np.zeros(1))
    _chains: list[list[int]] | None = field(init=False, default=None)
    _solved: _Solved | None = field(init=False, default=None)
    _slowest: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        if len(self.times) != len(self.errors) or any(len(t) != len(e) for t, e in zip(self.times, self.errors, strict=False)):
            raise ValueError("every option needs a time and an error")
        if not all(np.isfinite(np.concatenate([np.concatenate([t, e]) for t, e in zip(self.times, self.errors, strict=True)]))):
            raise ValueError("times and errors must be finite")
        self._floor = [float(t.min()) for t in self.times]
        self._slowest = sum(float(t.max()) for t in self.times) + sum(float(p.max()) for p in self.pairs.values())
        self._chains = _paths(len(self.times), list(self.pairs)) if self.pairs else None
        self._prepare()

    @property
    def fastest(self) -> float:
        """A lower bound of the time of any allocation; without couplings the least."""
        return sum(self._floor) + sum(float(p.min()) for p in self.pairs.values())

    @property
    def slowest(self) -> float:
        """An upper bound of the time of any allocation."""
        return self._slowest

    def time(self, chosen: Sequence[int]) -> float:
        """Seconds of an allocation, not rounded."""
        own = sum(float(t[o]) for t, o in zip(self.times, chosen, strict=True))
        return own + sum(float(p[chosen[u], chosen[v]]) for (u, v), p in self.pairs.items())

    def error(self, chosen: Sequence[int]) -> float:
        return sum(float(e[o]) for e, o in zip(self.errors, chosen, strict=True))

    # -- dynamic programming ------------------------------------------------------------------

    def _prepare(self) -> None:
        # Where all allocations take the same time, any width will do that is not zero.
        # Rounding up may take each item one bucket more: the slowest allocation must still fit.
        steps = max(1, self.buckets - len(self.times))
        self._unit = max((self.slowest - self.fastest) / steps, 1e-12 * abs(self.slowest), 1e-30)
        if self.pairs:
            return  # solved chain by chain, or round by round, when it is asked for
        self._weights = [
            np.ceil((t - floor) / self._unit - 1e-9).astype(int) for t, floor in zip(self.times, self._floor, strict=True)
        ]
        best = np.zeros(self.buckets + 1)
        self._choice = []
        for weights, errors in zip(self._weights, self.errors, strict=True):
            best, chosen = _step(best, weights, errors)
            self._choice.append(chosen)
        self._best = best

    def solve(self, budgets: Sequence[float] | Array) -> list[list[int] | None]:
        """For each budget in seconds the options of least error; None where none fits."""
        if self.pairs:
            return self._coupled(budgets)
        places = self._place(np.asarray(budgets, dtype=float), sum(self._floor))
        fits = (places >= 0) & np.isfinite(self._best[np.clip(places, 0, self.buckets)])
        at = np.clip(places, 0, self.buckets)
        chosen = np.zeros((len(places), len(self.times)), dtype=int)
        for item in range(len(self.times) - 1, -1, -1):
            chosen[:, item] = self._choice[item][at]
            at = np.maximum(at - self._weights[item][chosen[:, item]], 0)
        return [row.tolist() if fit else None for row, fit in zip(chosen, fits, strict=True)]

    def _least(self, budgets: Array) -> Array:
        """(budgets,): the errors of what `solve` finds, infinite where nothing fits; of items that are free, or form chains."""
        if self.pairs:
            solved = self._along_chains()
            best, floor = solved.best, solved.floor
        else:
            best, floor = self._best, sum(self._floor)
        places = self._place(budgets, floor)
        found: Array = np.where(places >= 0, best[np.clip(places, 0, self.buckets)], np.inf)
        return found

    def _coupled(self, budgets: Sequence[float] | Array) -> list[list[int] | None]:
        if self._chains is not None:
            return self._traced(self._along_chains(), budgets)
        hubs = self._hubs()
        if hubs:
            return self._around_hubs(hubs, budgets)
        return [self._in_turn(budget) for budget in budgets]

    def _hubs(self) -> list[int]:
        """Items without which the couplings form chains; none if that takes too many."""
        edges, found = list(self.pairs), []
        while _paths(len(self.times), edges) is None:
            degree = [sum(item in edge for edge in edges) for item in range(len(self.times))]
            hub = int(np.argmax(degree))
            found.append(hub)
            if len(found) > MOST_HUBS:
                return []
            edges = [edge for edge in edges if hub not in edge]
        return found

    def _hub_options(self, hubs: Sequence[int], budgets: Array) -> list[tuple[int, ...]]:
        """The combinations of the hubs' options that the rest is solved for: all, or those that may be best."""
        ranges = [range(len(self.times[hub])) for hub in hubs]
        if math.prod(len(options) for options in ranges) <= MOST_FIXED:
            return list(product(*ranges))
        edges = [edge for edge in self.pairs if not set(edge) & set(hubs)]
        chains = [chain for chain in _paths(len(self.times), edges) or [] if not set(chain) & set(hubs)]
        return promising(self.times, self.errors, self.pairs, hubs, chains, budgets, MOST_FIXED)

    def _around_hubs(self, hubs: Sequence[int], budgets: Sequence[float] | Array) -> list[list[int] | None]:
        """Combinations of the hubs' options, with the rest along its chains; exact if all combinations are tried."""
        best: list[list[int] | None] = [None] * len(budgets)
        least = np.full(len(budgets), np.inf)
        rest = [item for item in range(len(self.times)) if item not in hubs]
        place = {item: number for number, item in enumerate(rest)}
        for options in self._hub_options(hubs, np.asarray(budgets, dtype=float)):
            fixed = dict(zip(hubs, options, strict=True))
            times = [self.times[item].astype(float) for item in rest]
            own = sum(float(self.times[hub][option]) for hub, option in fixed.items())
            left: dict[tuple[int, int], Array] = {}
            for (u, v), table in self.pairs.items():
                if u in fixed and v in fixed:
                    own += float(table[fixed[u], fixed[v]])
                elif u in fixed:
                    times[place[v]] = times[place[v]] + table[fixed[u], :]
                elif v in fixed:
                    times[place[u]] = times[place[u]] + table[:, fixed[v]]
                else:
                    left[place[u], place[v]] = table
            part = Allocation(times, [self.errors[item] for item in rest], left, self.buckets)
            left_over = np.asarray(budgets, dtype=float) - own
            errors = part._least(left_over) + sum(float(self.errors[hub][option]) for hub, option in fixed.items())
            better = np.flatnonzero(errors < least)
            least[better] = errors[better]
            for number, chosen in zip(better.tolist(), part.solve(left_over[better]), strict=True):
                if chosen is not None:
                    best[number] = [fixed[i] if i in fixed else chosen[place[i]] for i in range(len(self.times))]
        return best

    def _along_chains(self) -> _Solved:
        """Exact for all budgets: the state is the option of the item before."""
        if self._solved is not None:
            return self._solved
        assert self._chains is not None
        size = self.buckets + 1
        before = np.zeros(size)  # best over everything in the chains done so far
        trail: list[tuple[int, Array, Array]] = []
        joins: list[Array] = []
        floors = 0.0
        value, better = np.empty(size), np.empty(size, dtype=bool)
        for chain in self._chains:
            table = before[None]
            for place, item in enumerate(chain):
                times, errors = self.times[item], self.errors[item]
                extra = np.zeros((1, len(times))) if place == 0 else self._pair(chain[place - 1], item)
                cost = times[None, :] + extra  # (option before, option)
                floor = float(cost.min())
                floors += floor
                weights = np.ceil((cost - floor) / self._unit - 1e-9).astype(int)
                new = np.full((len(times), size), np.inf)
                back = np.zeros((len(times), size), dtype=np.int32)
                for option in range(len(times)):
                    for previous in range(len(table)):
                        w = int(weights[previous, option])
                        if w >= size:
                            continue
                        np.add(table[previous, : size - w], errors[option], out=value[w:])
                        np.less(value[w:], new[option, w:], out=better[w:])
                        np.copyto(new[option, w:], value[w:], where=better[w:])
                        if previous:
                            np.copyto(back[option, w:], previous, where=better[w:])
                trail.append((item, back, weights))
                table = new
            last = np.argmin(table, axis=0)
            joins.append(last)
            before = np.take_along_axis(table, last[None], axis=0)[0]
        self._solved = _Solved(before, floors, tuple(trail), tuple(joins))
        return self._solved

    def _traced(self, solved: _Solved, budgets: Sequence[float] | Array) -> list[list[int] | None]:
        """The allocations that give the best errors."""
        assert self._chains is not None
        found: list[list[int] | None] = []
        for bucket in self._place(np.asarray(budgets, dtype=float), solved.floor).tolist():
            at = bucket
            if at < 0 or not np.isfinite(solved.best[at]):
                found.append(None)
                continue
            chosen = [0] * len(self.times)
            position = len(solved.trail)
            for chain, join in zip(reversed(self._chains), reversed(solved.joins), strict=True):
                option = int(join[at])
                for _ in chain:
                    position -= 1
                    item, back, weights = solved.trail[position]
                    chosen[item] = option
                    previous = int(back[option, at])
                    at -= int(weights[previous if len(weights) > 1 else 0, option])
                    option = previous
            found.append(chosen)
        return found

    def _place(self, budgets: Array, floor: float) -> Array:
        """Buckets of budgets; -1: below the fastest. What is enough for everything is all of them, whatever rounding takes."""
        places = np.clip(np.floor((budgets - floor) / self._unit + 1e-9), -1, self.buckets).astype(int)
        return np.where(budgets >= self.slowest * (1 - 1e-12 * np.sign(self.slowest)), self.buckets, places)

    def _pair(self, u: int, v: int) -> Array:
        return self.pairs[u, v] if (u, v) in self.pairs else self.pairs[v, u].T

    def _in_turn(self, budget: float) -> list[int] | None:
        """Fix the neighbours, solve, and again; the best that fits, or None."""
        chosen = [int(np.argmin(t)) for t in self.times]  # likely to fit, whatever the neighbours add
        best: list[int] | None = chosen if self.time(chosen) <= budget else None
        for _ in range(ROUNDS):
            times = [t.astype(float).copy() for t in self.times]
            for (u, v), pair in self.pairs.items():  # half to each: together they count the pair once
                times[u] += pair[:, chosen[v]] / 2
                times[v] += pair[chosen[u], :] / 2
            flat = Allocation(times, self.errors, buckets=self.buckets)
            own = self.time(chosen) - sum(float(t[o]) for t, o in zip(times, chosen, strict=True))
            (found,) = flat.solve([budget - own])
            if found is None:
                break
            over = self.time(found) - budget
            if over > 0:  # the neighbours moved too: ask for as much less
                (tighter,) = flat.solve([budget - own - over])
                found = tighter if tighter is not None else found
            if self.time(found) <= budget and (best is None or self.error(found) < self.error(best)):
                best = found
            if found == chosen:
                break
            chosen = found
        return best


def _step(best: Array, weights: Array, errors: Array) -> tuple[Array, Array]:
    """Add one item: least error for each bucket, and the option that gives it."""
    size = len(best)
    new = np.full(size, np.inf)
    chosen = np.zeros(size, dtype=np.int32)
    value, better = np.empty(size), np.empty(size, dtype=bool)
    for option, (w, error) in enumerate(zip(weights.tolist(), errors.tolist(), strict=True)):
        if w >= size:
            continue
        np.add(best[: size - w], error, out=value[w:])
        np.less(value[w:], new[w:], out=better[w:])
        np.copyto(new[w:], value[w:], where=better[w:])
        np.copyto(chosen[w:], option, where=better[w:])
    return new, chosen


def _paths(count: int, edges: Sequence[tuple[int, int]]) -> list[list[int]] | None:
    """The items as chains along the edges, single items included; None if a neighbourhood is no chain."""
    around: dict[int, list[int]] = {item: [] for item in range(count)}
    for u, v in edges:
        around[u].append(v)
        around[v].append(u)
    if any(len(near) > 2 for near in around.values()):
        return None
    chains, seen = [], set()
    for start in range(count):
        if start in seen or len(around[start]) > 1:
            continue
        chain, at, before = [], start, -1
        while True:
            chain.append(at)
            seen.add(at)
            following = [near for near in around[at] if near != before]
            if not following:
                break
            before, at = at, following[0]
        chains.append(chain)
    return chains if len(seen) == count else None  # a ring is left over
