"""Least squares against lstsq."""

from __future__ import annotations

import pytest
import torch

from hwprune.second_order import hessian, least_squares
from tests.second_order.helpers import best_loss, problem


def test_least_squares_against_lstsq():
    x, w, h = problem(7, 4)
    keep = torch.tensor([True, False, True, True, False, True, True])
    solved = least_squares.on_columns(h, w, keep)
    assert torch.allclose(solved, torch.linalg.lstsq(x[:, keep], x @ w.T).solution.T, atol=1e-6)
    new = torch.zeros_like(w)
    new[:, keep] = solved
    assert least_squares.loss(h, w, new) == pytest.approx(best_loss(x, w, keep), rel=1e-5)


def test_least_squares_on_masks_against_lstsq_row_by_row():
    x, w, h = problem(6, 5)
    keep = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    keep[3] = False
    solved = least_squares.on_mask(h, w, keep)
    assert not solved[~keep].any()
    for row in range(5):
        if keep[row].any():
            expected = torch.linalg.lstsq(x[:, keep[row]], x @ w[row, :, None]).solution[:, 0]
            assert torch.allclose(solved[row, keep[row]], expected, atol=1e-6)
    again = least_squares.masked_gradient(h, w @ h, torch.zeros_like(w), keep, iterations=200, tolerance=1e-12)
    assert torch.allclose(again, solved, atol=1e-5)


def test_nested_levels_equal_single_solutions():
    x, w, h = problem(8, 3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    weights, losses = least_squares.nested(h, w, order, [8, 5, 2, 0])
    assert float(losses[0]) == pytest.approx(0, abs=1e-6)
    for weight, loss, count in zip(weights, losses, [8, 5, 2, 0], strict=True):
        keep = torch.zeros(8, dtype=torch.bool)
        keep[order[:count]] = True
        assert float(loss) == pytest.approx(best_loss(x, w, keep), rel=1e-4, abs=1e-6)
        if count:
            assert torch.allclose(weight[:, torch.argsort(order[:count])], least_squares.on_columns(h, w, keep), atol=1e-8)


def test_reverse_factor():
    _, _, h = problem(9, 1)
    r = hessian.reverse_factor(h[None], torch.float64)[0].flip(0, 1)
    assert torch.allclose(r, r.triu())
    assert torch.allclose(r @ r.T, h, rtol=1e-8)
    for j in range(9):  # R_jj^-2 = [(H_{j:,j:})^-1]_jj
        assert float(r[j, j] ** -2) == pytest.approx(float(torch.linalg.inv(h[j:, j:])[0, 0]), rel=1e-8)
