"""Which options of a few much-coupled items are worth solving the rest for: bounds by Lagrange multipliers.

The width of a residual stream is coupled with every layer. Once it is fixed the layers fall apart, and solving them exactly for
each combination of such widths would take too long. A bound of the least error of every combination is quick: with a price on
time, each layer takes its best option for itself. The exact solution is then made for those that may be best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MOST_BOUNDED = 1500
"""Combinations of hubs' options that the search begins from; of more an even grid is taken, and then looked around."""
PRICES = 24
"""Prices of time that are tried."""
LOOKS = 4
"""Times that neighbours of the best combinations are looked at."""


def promising(
    times: Sequence[Array],
    errors: Sequence[Array],
    pairs: Mapping[tuple[int, int], Array],
    hubs: Sequence[int],
    chains: Sequence[Sequence[int]],
    budgets: Array,
    most: int,
) -> list[tuple[int, ...]]:
    """At most so many combinations of the hubs' options, those that may be best for most budgets first.

    Args:
        chains: the other items, along the pairs that are left between them.
    """
    sizes = [len(times[hub]) for hub in hubs]
    combos = np.array(list(product(*_grid(sizes))), dtype=int)
    prices = _prices(times, errors)
    bounds = _bounds(times, errors, pairs, hubs, chains, budgets, prices, combos)
    for _ in range(LOOKS):
        known = {tuple(row) for row in combos.tolist()}
        near = _around(combos[np.unique(bounds.argmin(axis=0))], sizes, known)
        if not len(near):
            break
        combos = np.concatenate([combos, near])
        bounds = np.concatenate([bounds, _bounds(times, errors, pairs, hubs, chains, budgets, prices, near)])
    order = np.argsort(bounds, axis=0, kind="stable")[:2]
    found = dict.fromkeys(tuple(combos[place].tolist()) for place in order.ravel())
    return list(found)[:most]


def _grid(sizes: Sequence[int]) -> list[list[int]]:
    """Evenly spaced options of each hub, the first and the last among them, so that the combinations are not too many."""
    counts = list(sizes)
    while np.prod(counts, dtype=float) > MOST_BOUNDED and max(counts) > 2:
        counts[int(np.argmax(counts))] -= 1
    return [
        list(dict.fromkeys(round(i * (size - 1) / max(1, count - 1)) for i in range(count)))
        for size, count in zip(sizes, counts, strict=True)
    ]


def _around(winners: Array, sizes: Sequence[int], known: set[tuple[int, ...]]) -> Array:
    """Combinations that differ from a winner by one or two steps of one hub, and were not looked at."""
    found: dict[tuple[int, ...], None] = {}
    for winner in winners.tolist():
        for place, size in enumerate(sizes):
            for step in (-2, -1, 1, 2):
                near = (*winner[:place], winner[place] + step, *winner[place + 1 :])
                if 0 <= near[place] < size and near not in known:
                    found[near] = None
    return np.array(list(found), dtype=int).reshape(-1, len(sizes))


def _prices(times: Sequence[Array], errors: Sequence[Array]) -> Array:
    """Errors per second, from what the gentlest option asks to more than the harshest does."""
    slopes = []
    for time, error in zip(times, errors, strict=True):
        base = int(np.argmin(error))
        gain, cost = time[base] - time, error - error[base]
        slopes += (cost[(gain > 0) & (cost > 0)] / gain[(gain > 0) & (cost > 0)]).tolist()
    if not slopes:
        return np.array([0.0, 1.0])
    return np.concatenate([[0.0], np.geomspace(min(slopes) / 2, 4 * max(slopes), PRICES)])


def _bounds(
    times: Sequence[Array],
    errors: Sequence[Array],
    pairs: Mapping[tuple[int, int], Array],
    hubs: Sequence[int],
    chains: Sequence[Sequence[int]],
    budgets: Array,
    prices: Array,
    combos: Array,
) -> Array:
    """(combinations, budgets): an error that no allocation with these options of the hubs and this budget falls below."""
    count = len(combos)
    column = {hub: combos[:, place] for place, hub in enumerate(hubs)}
    own = sum((times[hub][column[hub]] for hub in hubs), np.zeros(count))
    fixed = sum((errors[hub][column[hub]] for hub in hubs), np.zeros(count))
    spent = {item: np.broadcast_to(times[item], (count, len(times[item]))) for chain in chains for item in chain}
    for (u, v), table in pairs.items():
        if u in column and v in column:
            own = own + table[column[u], column[v]]
        elif u in column:
            spent[v] = spent[v] + table[column[u], :]
        elif v in column:
            spent[u] = spent[u] + table[:, column[v]].T
    best = np.full((count, len(budgets)), -np.inf)
    for price in prices:
        least = fixed + price * own
        for chain in chains:
            value = errors[chain[0]] + price * spent[chain[0]]
            for before, item in pairwise(chain):
                step = pairs[before, item] if (before, item) in pairs else pairs[item, before].T
                value = (value[:, :, None] + price * step).min(axis=1) + errors[item] + price * spent[item]
            least = least + value.min(axis=1)
        best = np.maximum(best, least[:, None] - price * budgets)
    return best
