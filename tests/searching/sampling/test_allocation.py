"""The knapsack against brute force: every allocation is enumerated and priced independently."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwprune.searching.sampling import allocation
from hwprune.searching.sampling.allocation import Allocation
from hwprune.searching.sampling.dominance import undominated
from hwprune.searching.sampling.exact_program import solve_limits


def instance(seed, items=4, options=4, ties=False):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, options + 1, items)
    times = [draw.random(n) * 1e-3 for n in sizes]
    errors = [draw.random(n) for n in sizes]
    if ties:
        times = [np.round(t, 4) for t in times]
        errors = [np.round(e, 1) for e in errors]
        times[0][:] = 0.0  # options that cost nothing
    return times, errors


def brute(times, errors, budget, pairs=None):
    """Least error of all allocations within the budget, or None."""
    best = None
    for chosen in itertools.product(*[range(len(t)) for t in times]):
        time = sum(t[o] for t, o in zip(times, chosen, strict=False)) + sum(
            p[chosen[u], chosen[v]] for (u, v), p in (pairs or {}).items()
        )
        if time <= budget:
            error = sum(e[o] for e, o in zip(errors, chosen, strict=False))
            best = error if best is None else min(best, error)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_equals_brute_force_for_every_budget_and_never_exceeds_it(seed):
    times, errors = instance(seed, ties=seed % 2 == 1)
    solver = Allocation(times, errors, buckets=20_000)
    budgets = np.linspace(0.2 * solver.fastest, 1.1 * solver.slowest + 1e-6, 25)
    for budget, chosen in zip(budgets, solver.solve(budgets), strict=False):
        wanted = brute(times, errors, budget)
        if chosen is None:
            # Rounding up may lose what fits by less than a bucket an item.
            assert wanted is None or brute(times, errors, budget - len(times) * solver.slowest / 20_000) is None
            continue
        assert solver.time(chosen) <= budget + 1e-15
        lenient = brute(times, errors, budget - len(times) * solver.slowest / 20_000)
        assert wanted - 1e-12 <= solver.error(chosen) <= (np.inf if lenient is None else lenient) + 1e-12


@pytest.mark.parametrize("seed", range(10))
def test_one_pass_for_all_budgets_equals_a_fresh_solve_for_each(seed):
    times, errors = instance(seed, items=5)
    solver = Allocation(times, errors)
    budgets = np.linspace(solver.fastest, solver.slowest, 17)
    together = solver.solve(budgets)
    for budget, chosen in zip(budgets, together, strict=False):
        assert Allocation(times, errors).solve([budget]) == [chosen]


def exact(solver, times, errors, pairs, buckets):
    """Every budget against brute force; rounding up may lose what fits by less than so many buckets."""
    slack = buckets * (solver.slowest - solver.fastest) / solver.buckets
    for budget in np.linspace(solver.fastest, solver.slowest, 9):
        (chosen,) = solver.solve([budget])
        wanted, lenient = brute(times, errors, budget, pairs), brute(times, errors, budget - slack, pairs)
        if chosen is None:
            assert lenient is None
        else:
            assert solver.time(chosen) <= budget + 1e-15
            assert wanted - 1e-12 <= solver.error(chosen) <= (np.inf if lenient is None else lenient) + 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_chains_of_neighbours_equal_brute_force(seed):
    times, errors = instance(seed, items=4, options=3)
    draw = np.random.default_rng(seed + 100)
    edges = [(0, 1), (1, 2), (2, 3)] if seed % 2 else [(0, 2), (1, 3)]
    pairs = {(u, v): draw.random((len(times[u]), len(times[v]))) * 1e-3 for u, v in edges}
    solver = Allocation(times, errors, pairs, buckets=20_000)
    exact(solver, times, errors, pairs, 8)


@pytest.mark.parametrize("seed", range(20))
def test_rings_of_neighbours_keep_the_budget_and_come_close(seed, monkeypatch):
    """No chain: solved in turn. Every answer fits; over all seeds few are worse than the optimum."""
    times, errors = instance(seed, items=4, options=3)
    draw = np.random.default_rng(seed + 200)
    pairs = {(u, v): draw.random((len(times[u]), len(times[v]))) * 2e-4 for u, v in [(0, 1), (1, 2), (2, 3), (0, 3)]}
    monkeypatch.setattr(allocation, "MOST_HUBS", 0)  # as if it took too many items to leave chains
    solver = Allocation(times, errors, pairs)
    for budget in np.linspace(solver.fastest, solver.slowest, 9):
        (chosen,) = solver.solve([budget])
        wanted = brute(times, errors, budget, pairs)
        if chosen is not None:
            assert solver.time(chosen) <= budget
            assert solver.error(chosen) >= wanted - 1e-12
    (loose,) = solver.solve([solver.slowest])
    assert loose is not None and solver.error(loose) == pytest.approx(brute(times, errors, solver.slowest, pairs))


def test_a_budget_below_the_fastest_has_no_solution():
    times, errors = instance(3)
    solver = Allocation(times, errors)
    assert solver.solve([solver.fastest * 0.99])[0] is None
    assert solver.solve([solver.slowest])[0] == [int(np.argmin(e)) for e in errors]


@pytest.mark.parametrize("seed", range(30))
def test_the_slowest_allocation_is_reached(seed):
    """Rounding up must not put it out of reach."""
    draw = np.random.default_rng(seed)
    times = [np.array([0.0, draw.random()]) for _ in range(6)]
    errors = [np.array([1.0, 0.0])] * 6
    solver = Allocation(times, errors, buckets=100)
    assert solver.solve([solver.slowest]) == [[1] * 6]


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        Allocation([np.array([1.0, np.nan])], [np.array([0.0, 1.0])])
    with pytest.raises(ValueError, match="time and an error"):
        Allocation([np.array([1.0])], [np.array([0.0, 1.0])])


@pytest.mark.parametrize("seed", range(15))
def test_several_resources_equal_brute_force(seed):
    times, errors = instance(seed, items=4)
    draw = np.random.default_rng(seed + 300)
    sizes = [draw.random(len(t)) * 1e6 for t in times]
    limits = (0.5 * sum(t.max() for t in times), 0.6 * sum(s.max() for s in sizes))
    best = None
    for chosen in itertools.product(*[range(len(t)) for t in times]):
        fits = all(
            sum(u[o] for u, o in zip(use, chosen, strict=False)) <= limit
            for use, limit in zip((times, sizes), limits, strict=False)
        )
        if fits:
            error = sum(e[o] for e, o in zip(errors, chosen, strict=False))
            best = error if best is None else min(best, error)
    found = solve_limits(errors, [times, sizes], limits)
    if best is None:
        assert found is None
    else:
        assert sum(e[o] for e, o in zip(errors, found, strict=False)) == pytest.approx(best, rel=1e-4)


def test_dominated_options_go():
    assert undominated([3, 1, 2, 2, 1], [0.0, 0.9, 0.5, 0.4, 0.9]) == [1, 3, 0]
    assert undominated([1, 1], [0.5, 0.5]) == [0]


@pytest.mark.parametrize("seed", range(20))
def test_stars_and_rings_equal_brute_force(seed):
    """No chains, but with the hub's options fixed one after another the rest is."""
    times, errors = instance(seed, items=4, options=3)
    draw = np.random.default_rng(seed + 400)
    edges = [(0, 1), (0, 2), (0, 3)] if seed % 2 else [(0, 1), (1, 2), (2, 3), (0, 3)]
    pairs = {(u, v): draw.normal(0, 3e-4, (len(times[u]), len(times[v]))) for u, v in edges}
    solver = Allocation(times, errors, pairs, buckets=20_000)
    exact(solver, times, errors, pairs, 12)


@pytest.mark.parametrize("coupled", [False, True])
def test_a_budget_is_never_exceeded_however_coarse_the_buckets(coupled):
    """With few buckets rounding matters: rounded to nearest or down, half of these would be over."""
    draw = np.random.default_rng(0)
    met = 0
    for _ in range(20):
        times = [draw.random(4) for _ in range(6)]
        errors = [np.sort(draw.random(4))[::-1] for _ in range(6)]
        pairs = {(0, 1): draw.random((4, 4)), (1, 2): draw.random((4, 4))} if coupled else {}
        problem = Allocation(times, errors, pairs, buckets=30)
        for budget in np.linspace(problem.fastest, problem.slowest, 25):
            (chosen,) = problem.solve([budget])
            if chosen is not None:
                met += 1
                assert problem.time(chosen) <= budget + 1e-9
    assert met > 200
