"""Items and choices that make no sense, and those that are left out because others are better."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwprune.searching.sampling.allocation import Allocation
from hwprune.searching.sampling.knapsack import KnapsackSampler
from hwprune.searching.sampling.problem import AllocationProblem, Choice, Item


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="finite error"):
        Choice({"a": 0}, -0.1, 0)
    with pytest.raises(ValueError, match="finite error"):
        Choice({"a": 0}, float("nan"), 0)
    with pytest.raises(ValueError, match="same parameters"):
        Item("a", (Choice({"a": 0}, 0, 0), Choice({"b": 1}, 0.1, 0.1)))
    with pytest.raises(ValueError, match="at least one item"):
        KnapsackSampler([])


def coupled_problem(seed):
    """Few levels of each unit, none with a response; in about half of the pairs of units one level likes one of the other."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(3, 5, int(draw.integers(3, 5))).tolist()
    items = []
    for u, size in enumerate(sizes):
        errors = np.array([0.0, *np.round(0.01 * draw.random(size - 1), 3)])  # rounded: many are equal, and so dominated
        saved = np.array([0.0, *np.round(0.1 * draw.random(size - 1), 2)])
        items.append(Item(f"u{u}", tuple(Choice({f"u{u}": i}, errors[i], saved[i], levels=((f"u{u}", i),)) for i in range(size))))
    tables = {}
    for u, v in itertools.combinations(range(len(sizes)), 2):
        if draw.random() < 0.5:
            table = np.zeros((sizes[u], sizes[v]))
            table[draw.integers(1, sizes[u]), draw.integers(1, sizes[v])] = 0.15
            tables[f"u{u}", f"u{v}"] = table
    return AllocationProblem(items, tables)


def all_allocations(problem):
    """(error, time) of every allocation, added up one at a time."""
    found = []
    for chosen in itertools.product(*[range(len(item.choices)) for item in problem.items]):
        error = sum(item.choices[option].error for item, option in zip(problem.items, chosen, strict=True))
        time = -sum(item.choices[option].saved for item, option in zip(problem.items, chosen, strict=True))
        time -= sum(float(table[chosen[u], chosen[v]]) for (u, v), table in problem.couplings.items())
        found.append((error, time))
    return found


@pytest.mark.parametrize("seed", range(40))
def test_no_optimum_is_lost_with_what_is_not_useful(seed):
    """By brute force over all choices, useful or not: what is left out was never needed, at any budget."""
    problem = coupled_problem(seed)
    times = [-saved[useful] for saved, useful in zip(problem.saved, problem.useful, strict=True)]
    errors = [error[useful] for error, useful in zip(problem.errors, problem.useful, strict=True)]
    pairs = {(u, v): -table[np.ix_(problem.useful[u], problem.useful[v])] for (u, v), table in problem.couplings.items()}
    solver = Allocation(times, errors, pairs)
    every = all_allocations(problem)
    bucket = (solver.slowest - solver.fastest) / (solver.buckets - len(times))
    for budget in np.linspace(min(time for _, time in every), 0.0, 24):
        (chosen,) = solver.solve([budget])
        within = [error for error, time in every if time <= budget - len(times) * bucket]
        if chosen is None:
            assert not within
            continue
        assert solver.time(chosen) <= budget + 1e-12
        assert solver.error(chosen) <= min(within, default=np.inf) + 1e-12


def test_what_is_worse_alone_and_best_with_a_neighbour_stays():
    def unit(name):
        prices = ((0.0, 0.0), (0.02, 0.20), (0.02, 0.19), (0.02, 0.18))
        return Item(name, tuple(Choice({name: i}, *price, levels=((name, i),)) for i, price in enumerate(prices)))

    table = np.zeros((4, 4))
    table[2, 2] = 0.25  # both on the kernel's multiple: faster together than the sum
    problem = AllocationProblem([unit("a"), unit("b")], {("a", "b"): table})
    assert problem.useful == [[1, 2, 0], [1, 2, 0]]  # the last one is worse whatever the other does
