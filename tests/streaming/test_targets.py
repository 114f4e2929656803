"""Weights for what a layer is really given."""

from __future__ import annotations

import pytest
import torch

from hwprune.streaming import targets


def test_targets_are_those_of_ridge_regression():
    """By the stacked least-squares problem, which has no Gram matrix."""
    generator = torch.Generator().manual_seed(0)
    x, noise, w = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((50, 6), (50, 6), (3, 6)))
    y = x + 0.5 * noise
    hessian, cross, ridge = y.T @ y / 50, x.T @ y / 50, 0.1
    weight = (ridge * hessian.diagonal().mean() * 50).sqrt()
    rows = torch.cat([y, weight * torch.eye(6, dtype=torch.float64)])
    wanted = torch.linalg.lstsq(rows, torch.cat([x @ w.T, weight * w.T])).solution.T
    torch.testing.assert_close(targets.moved(w, w, hessian, cross, ridge), wanted)
    for v in (w, wanted, torch.zeros_like(w)):
        error = float((y @ v.T - x @ w.T).square().sum() / 50 - (x @ w.T).square().sum() / 50)
        assert targets.error(v, w, hessian, cross) == pytest.approx(error)


def test_the_ridge_is_chosen_by_what_was_held_out():
    """Few rows say nothing of most directions: what fits them without a ridge is far off elsewhere."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 30, generator=generator, dtype=torch.float64)

    def moments(rows, noise):
        x = torch.randn(rows, 30, generator=generator, dtype=torch.float64)
        y = x + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return y.T @ y / rows, x.T @ y / rows

    few, many, held = moments(12, 1.0), moments(20_000, 1.0), moments(20_000, 1.0)
    assert targets.best_ridge(w, w, many, held) == min(targets.RIDGES)
    assert targets.best_ridge(w, w, few, held) in (None, max(targets.RIDGES))
    same = moments(50, 0.0)
    assert targets.error(targets.moved(w, w, *same, 0.01), w, *same) == pytest.approx(targets.error(w, w, *same))
    assert targets.moved(w, w, *many, None) is w
