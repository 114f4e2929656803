"""The integer program against brute force, where errors differ by orders of magnitude and limits are kept to the last bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwprune.searching.sampling.exact_program import solve_limits


def total(rows, chosen):
    return sum(float(row[option]) for row, option in zip(rows, chosen, strict=True))


def best_of_all(errors, uses, limits):
    """Least error of all allocations that keep the limits; None if none does."""
    every = itertools.product(*[range(len(row)) for row in errors])
    fits = [c for c in every if all(total(use, c) <= limit for use, limit in zip(uses, limits, strict=True))]
    return min((total(errors, c) for c in fits), default=None)


@pytest.mark.parametrize("seed", range(60))
def test_small_errors_count_beside_a_large_one(seed):
    """Each item has errors from 1e-7 to 1e-4, and one of 2.7, as a branch that goes."""
    draw = np.random.default_rng(seed)
    errors = [np.array([0, *np.sort(np.exp(draw.uniform(np.log(1e-7), np.log(1e-4), 4))), 2.7]) for _ in range(5)]
    uses = [[-np.array([0, *np.sort(draw.uniform(0.005, 0.1, 4)), 0.16]) for _ in range(5)] for _ in range(2)]
    limits = [-0.12, -0.10]
    found = solve_limits(errors, uses, limits)
    assert found is not None
    assert all(total(use, found) <= limit for use, limit in zip(uses, limits, strict=True))
    assert total(errors, found) <= 1.01 * best_of_all(errors, uses, limits)


@pytest.mark.parametrize("seed", range(20))
def test_a_limit_is_not_exceeded_within_the_solvers_tolerance(seed):
    """The limit is missed by less than the solver sees by what would be best."""
    draw = np.random.default_rng(seed)
    errors = [np.array([0.0, *draw.random(3)]) for _ in range(4)]
    uses = [[np.array([1.0, *draw.random(3)]) for _ in range(4)]]
    limits = [total(uses[0], [0, 0, 0, 0]) - 1e-8]
    found = solve_limits(errors, uses, limits)
    assert found is not None
    assert total(uses[0], found) <= limits[0]
    assert total(errors, found) == pytest.approx(best_of_all(errors, uses, limits), rel=1e-3)


def test_what_meets_a_limit_exactly_is_found():
    errors, uses = [np.array([0.0, 1.0])] * 3, [[np.array([0.1, 0.0])] * 3]
    assert solve_limits(errors, uses, [total(uses[0], [0, 0, 0])]) == [0, 0, 0]


def test_errors_that_all_items_share_make_no_difference():
    """Each item's least error is paid anyway."""
    errors, uses = [np.array([5.0, 5.0 + 1e-7, 5.0 + 3e-7])] * 2, [[np.array([1.0, 0.5, 0.4])] * 2]
    assert sorted(solve_limits(errors, uses, [1.5])) == [0, 1]


def test_limits_that_nothing_meets():
    assert solve_limits([np.array([0.0, 1.0])], [[np.array([1.0, 0.5])]], [0.4]) is None
