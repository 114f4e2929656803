"""Exact OBS against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch

from hwprune.second_order import exact, structured
from tests.second_order.helpers import best_loss, greedy_by_brute_force, problem


@pytest.mark.parametrize(("rows", "group"), [(1, 1), (1, 2), (2, 2)])
def test_exact_obs_against_brute_force(rows, group):
    n = 6 // group
    x, w, h = problem(6, 2 * rows, seed=5)
    columns = torch.arange(6).reshape(n, group)
    order, losses = exact.removal_orders(h, w.reshape(2, rows, 6), columns, n)
    for block in range(2):
        expected, steps = greedy_by_brute_force([(x, w[block * rows : (block + 1) * rows], 1.0)], n, columns)
        assert order[block].tolist() == expected
        assert losses[block].tolist() == pytest.approx(steps, rel=1e-4)


def test_exact_obs_removes_the_single_best_weight_first():
    """w^2 / [H^-1]_ii is the true growth of the loss, for every weight (Hassibi & Stork)."""
    x, w, h = problem(6, 1, seed=7)
    growth = [best_loss(x, w, torch.arange(6) != i) for i in range(6)]
    formula = w[0].square() / torch.linalg.inv(h).diagonal()
    assert formula.tolist() == pytest.approx(growth, rel=1e-5)
    order, losses = exact.removal_orders(h, w[None], torch.arange(6)[:, None], 1)
    assert int(order) == min(range(6), key=growth.__getitem__)
    assert float(losses) == pytest.approx(min(growth), rel=1e-5)


def test_exact_obs_keeps_to_n_of_m():
    _, w, h = problem(8, 3)
    order, _ = exact.removal_orders(h, w[:, None], torch.arange(8)[:, None], 4, exact.KeepLimits(4, 2))
    keep = torch.ones(3, 8, dtype=torch.bool).scatter(1, order, False)
    assert (keep.reshape(3, 2, 4).sum(2) == 2).all()


def test_choice_over_rows_takes_prefixes_and_the_exact_number():
    order = torch.tensor([[0, 1, 2], [2, 1, 0]])
    losses = torch.tensor([[5.0, 1.0, 9.0], [2.0, 3.0, 4.0]])  # row 0: the second step may not come before the first
    keep = exact.choose(order, losses, 4)
    assert keep.tolist() == [[False, True, True], [False, False, False]]
    assert exact.choose(order, losses, 5).tolist() == [[False, False, True], [False, False, False]]


def test_all_orders_of_tiny_problems_are_no_better_than_exhaustive_search():
    """Greedy is not optimal, but its losses are true: exhaustive search over supports bounds them from below."""
    x, w, h = problem(5, 3, seed=11)
    order, losses = structured.removal_order([structured.Consumer(h, w, torch.arange(5)[:, None])], 1)
    for removed in range(1, 5):
        best = min(
            best_loss(x, w, ~torch.isin(torch.arange(5), torch.tensor(gone)))
            for gone in itertools.combinations(range(5), removed)
        )
        assert float(losses[:removed].sum()) >= best * (1 - 1e-6)
        if removed == 1:
            assert float(losses[0]) == pytest.approx(best, rel=1e-5)
