"""Least squares of one layer, as far as held-out examples confirm it."""

from __future__ import annotations

import pytest
import torch

from hwprune.compensation.refit import refit


def sample(rows, true, draw, noise=0.0, mean=0.0):
    x = torch.randn(1, rows, true.shape[1], generator=draw) @ torch.diag(torch.linspace(0.2, 2, true.shape[1])) + mean
    y = x @ true.T + noise * torch.randn(1, rows, len(true), generator=draw)
    return x, y


def error(weights, shift, x, y):
    return float((x.double() @ weights.mT + shift[:, None] - y.double()).square().mean())


def test_enough_examples_give_the_least_squares_solution():
    draw = torch.Generator().manual_seed(0)
    true = torch.randn(5, 12, generator=draw)
    old = torch.zeros(1, 5, 12, dtype=torch.float64)
    new, shift = refit(sample(4000, true, draw), sample(1000, true, draw), old, None, torch.zeros(old.shape[:2]).double())
    unseen = sample(4000, true, draw)
    assert error(new, shift, *unseen) < 1e-3 * error(old, torch.zeros(1, 5), *unseen)
    assert shift.abs().max() < 0.02


@pytest.mark.parametrize("seed", range(8))
def test_few_noisy_examples_never_make_unseen_ones_worse(seed):
    """The old weights are right and the examples are noise: what fits them best is worse on all others."""
    draw = torch.Generator().manual_seed(seed)
    true = torch.randn(4, 60, generator=draw)
    old = true.double()[None]
    fitted, held, unseen = (sample(rows, true, draw, noise=4.0) for rows in (90, 30, 4000))
    zero = torch.zeros(1, 4, dtype=torch.float64)
    new, shift = refit(fitted, held, old, None, zero)
    best = error(old, zero, *unseen)
    assert error(new, shift, *unseen) < 1.08 * best
    gram = fitted[0][0].T @ fitted[0][0]
    ridge = 0.01 * gram.diagonal().mean() * torch.eye(60)
    by_heart = torch.linalg.solve(gram + ridge, fitted[0][0].T @ (fitted[1] - fitted[0] @ true.T)[0]).T
    assert error(old + by_heart, zero, *unseen) > 1.25 * best  # what a fixed ridge does


def applied(noise, seed, rows=900):
    """What part of the right change is made: old weights that are a fifth too small, and outputs with noise."""
    draw = torch.Generator().manual_seed(seed)
    true = torch.randn(20, 40, generator=draw)
    old = 0.8 * true.double()[None]
    fitted, held = sample(rows, true, draw, noise=noise), sample(rows // 3, true, draw, noise=noise)
    new, _ = refit(fitted, held, old, None, torch.zeros(1, 20, dtype=torch.float64))
    wanted = true.double() - old[0]
    return float(((new[0] - old[0]) * wanted).sum() / wanted.square().sum())


def test_a_change_is_not_held_back_where_that_saves_little_error():
    """What is held back is missing for every example alike; noise is another one in each output and layer."""
    assert all(applied(noise=4.0, seed=seed) > 0.9 for seed in range(4))  # with the least held-out error it is 0.75
    assert all(applied(noise=16.0, seed=seed, rows=150) < 0.6 for seed in range(4))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [3, 8])
def test_constants_are_moved_only_as_far_as_other_examples_confirm(seed, rows):
    """A handful of examples: their mean is luck, and the bias would take all of it."""
    draw = torch.Generator().manual_seed(seed)
    true = torch.randn(40, 10, generator=draw)
    fitted, held, unseen = (sample(count, true, draw, noise=4.0) for count in (rows, max(1, rows // 3), 4000))
    zero = torch.zeros(1, 40, dtype=torch.float64)
    new, shift = refit(fitted, held, true.double()[None], None, zero)
    own_mean = (fitted[1] - fitted[0] @ true.T).mean(dim=1).double()
    assert error(new, shift, *unseen) < 1.3 * error(true.double()[None], zero, *unseen)
    assert error(new, shift, *unseen) < error(true.double()[None], own_mean, *unseen)


def test_nothing_is_changed_that_nothing_can_confirm():
    draw = torch.Generator().manual_seed(5)
    true = torch.randn(3, 10, generator=draw)
    old, constant = torch.randn(1, 3, 10, generator=draw).double(), torch.ones(1, 3).double()
    new, shift = refit(sample(50, true, draw), None, old, None, constant)
    assert torch.equal(new, old)
    assert torch.equal(shift, constant)


def test_a_change_that_does_not_hold_up_is_not_made():
    draw = torch.Generator().manual_seed(1)
    true = torch.randn(3, 10, generator=draw)
    old = torch.randn(1, 3, 10, generator=draw, dtype=torch.float64)
    x, y = sample(500, true, draw)
    held_x, held_y = sample(500, true, draw)
    against = held_x @ old[0].float().T - (held_y - held_x @ old[0].float().T)  # the opposite of what the fit asks for
    new, _ = refit((x, y), (held_x, against), old, None, None)
    assert torch.equal(new, old)


def test_weights_that_are_gone_stay_gone():
    draw = torch.Generator().manual_seed(2)
    true = torch.randn(6, 16, generator=draw)
    keep = torch.rand(1, 6, 16, generator=draw) > 0.5
    old = (true.double() * keep[0])[None]
    fitted, held = sample(2000, true, draw), sample(500, true, draw)
    new, _ = refit(fitted, held, old, keep, torch.zeros(old.shape[:2]).double())
    assert (new[~keep] == 0).all()
    assert error(new, torch.zeros(1, 6), *held) <= error(old, torch.zeros(1, 6), *held)


def test_constants_bring_the_mean_to_the_wanted_one():
    draw = torch.Generator().manual_seed(3)
    true = torch.randn(4, 8, generator=draw)
    (x, y), (hx, hy) = sample(1000, true, draw, mean=3.0), sample(300, true, draw, mean=3.0)
    old = torch.zeros(1, 4, 8, dtype=torch.float64)
    new, shift = refit((x, y + 7), (hx, hy + 7), old, None, torch.zeros(old.shape[:2]).double())
    assert (x.double() @ new.mT + shift[:, None]).mean(dim=1)[0] == pytest.approx((y + 7).double().mean(dim=1)[0], abs=0.1)


def test_inputs_that_are_always_zero():
    old = torch.ones(1, 2, 3, dtype=torch.float64)
    empty = (torch.zeros(1, 50, 3), torch.zeros(1, 50, 2))
    new, shift = refit(empty, empty, old, None, torch.zeros(old.shape[:2]).double())
    assert torch.equal(new, old)
    assert (shift == 0).all()
