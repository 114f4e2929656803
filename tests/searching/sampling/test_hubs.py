"""Combinations of much-coupled items that are worth solving for."""

from __future__ import annotations

from itertools import product

import numpy as np

from hwprune.searching.sampling import allocation, hubs
from hwprune.searching.sampling.allocation import Allocation


def streams(layers: int, sizes: int, seed: int):
    """Two widths of a residual stream, each coupled with half of the layers and with the other: half and half leave a quarter."""
    draw = np.random.default_rng(seed)
    gone = np.linspace(0, 0.9, sizes)
    times, errors, pairs = [], [], {(0, 1): 0.05 * np.outer(gone, gone)}
    for item in range(layers + 2):
        times.append(-(0.4 if item < 2 else 1 / layers) * gone)
        errors.append(draw.uniform(0.2, 2) * (2.0 if item < 2 else 0.3) * gone ** draw.uniform(1.5, 3))
    for layer in range(layers):
        pairs[layer * 2 // layers, layer + 2] = np.outer(gone, gone) * 0.6 / layers
    return times, errors, pairs


def test_the_optimum_is_among_the_promising_combinations(monkeypatch):
    budgets = np.linspace(-1.0, 0.0, 24)
    for seed in range(3):
        problem = streams(6, 7, seed)
        exact = Allocation(*problem).solve(budgets)  # 49 combinations are all tried
        monkeypatch.setattr(allocation, "MOST_FIXED", 24)
        some = Allocation(*problem)
        found = some.solve(budgets)
        monkeypatch.undo()
        assert [one is None for one in found] == [one is None for one in exact]
        for one, best, budget in zip(found, exact, budgets, strict=True):
            if one is not None and best is not None:
                assert some.time(one) <= budget + 1e-12
                assert some.error(one) <= 1.02 * some.error(best) + 1e-9


def test_a_grid_that_leaves_options_out_is_looked_around(monkeypatch):
    """Of 9 x 9 combinations the grid holds 16; neighbours of the best bring in the others that matter."""
    times, errors, pairs = streams(6, 9, 0)
    budgets = np.linspace(-0.9, -0.1, 9)
    chains = [[item] for item in range(2, 8)]
    everything = set(hubs.promising(times, errors, pairs, [0, 1], chains, budgets, 40))
    monkeypatch.setattr(hubs, "MOST_BOUNDED", 16)
    assert [len(options) for options in hubs._grid([9, 9])] == [4, 4]
    assert len(everything & set(hubs.promising(times, errors, pairs, [0, 1], chains, budgets, 40))) > 0.8 * len(everything)


def test_bounds_are_below_every_allocation_that_fits_the_budget():
    times, errors, pairs = streams(3, 3, 0)
    pairs[2, 3] = np.full((3, 3), 0.01) * np.arange(3)
    budgets = np.array([-0.8, -0.4, -0.1])
    combos = np.array(list(product(range(3), repeat=2)))
    prices = hubs._prices(times, errors)
    bounds = hubs._bounds(times, errors, pairs, [0, 1], [[2, 3], [4]], budgets, prices, combos)
    whole = Allocation(times, errors, pairs)
    reached = np.full(bounds.shape, np.inf)
    for chosen in product(range(3), repeat=5):
        place = chosen[0] * 3 + chosen[1]
        fits = whole.time(chosen) <= budgets
        reached[place, fits] = np.minimum(reached[place, fits], whole.error(chosen))
    assert (bounds <= reached + 1e-9).all()
    share = (bounds / np.maximum(reached, 1e-9))[np.isfinite(reached) & (reached > 0)]
    assert share.min() > 0.6 and np.median(share) > 0.95
