"""The sweep against the literal algorithm."""

from __future__ import annotations

import pytest
import torch

from hwprune.second_order import hessian, least_squares, sparsegpt
from tests.second_order.helpers import problem


def literal_sparsegpt(w, h, sparsity, block, n_of_m=None):
    """Algorithm 1 of the paper, line by line."""
    rows, d = w.shape
    w = w.clone()
    mask = torch.ones(rows, d, dtype=torch.bool)
    inverse = torch.linalg.cholesky(torch.linalg.inv(h)).mT
    for i in range(0, d, block):
        errors = torch.zeros(rows, block, dtype=w.dtype)
        for j in range(i, i + block):
            step = block if n_of_m is None else n_of_m[1]
            if (j - i) % step == 0:
                scores = w[:, j : j + step].square() / inverse.diagonal()[j : j + step].square()
                if n_of_m is None:
                    lowest = scores.reshape(-1).argsort()[: round(sparsity * scores.numel())]
                    part = torch.ones(scores.numel(), dtype=torch.bool)
                    part[lowest] = False
                    mask[:, j : j + step] = part.reshape(scores.shape)
                else:
                    highest = scores.argsort(dim=1, descending=True)[:, : n_of_m[0]]
                    mask[:, j : j + step] = torch.zeros(rows, step, dtype=torch.bool).scatter(1, highest, True)
            errors[:, j - i] = w[:, j] / inverse[j, j] * ~mask[:, j]
            w[:, j : i + block] -= errors[:, j - i, None] * inverse[None, j, j : i + block]
        w[:, i + block :] -= errors @ inverse[i : i + block, i + block :]
    return w * mask, mask


@pytest.mark.parametrize("n_of_m", [None, (2, 4), (1, 4)])
def test_sparsegpt_against_the_literal_algorithm(n_of_m):
    _, w, h = problem(256, 10, seed=4)
    h = hessian.damp(h, 0.01)
    expected, expected_mask = literal_sparsegpt(w, h, 0.5, 128, n_of_m)

    def choose(scores, start):
        g, r, c = scores.shape
        flat = scores.reshape(-1) if n_of_m is None else scores
        remove = round(0.5 * flat.numel()) if n_of_m is None else n_of_m[1] - n_of_m[0]
        keep = torch.ones_like(flat, dtype=torch.bool).scatter(-1, flat.argsort(dim=-1)[..., :remove], False)
        return keep.reshape(g, r, c)

    factor = hessian.reverse_factor(h[None], torch.float64)
    new, mask = sparsegpt.sweep(factor, w[None], choose, group=None if n_of_m is None else n_of_m[1])
    assert torch.equal(mask[0], expected_mask)
    assert torch.allclose(new[0], expected, atol=1e-8)


def test_sparsegpt_on_several_groups_is_each_on_its_own():
    problems = [problem(20, 3, seed) for seed in (0, 1)]
    factor = hessian.reverse_factor(torch.stack([p[2] for p in problems]), torch.float64)
    keep = torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(0)) > 0.5
    new, _ = sparsegpt.sweep(factor, torch.stack([p[1] for p in problems]), keep=keep)
    for i in range(2):
        one, _ = sparsegpt.sweep(factor[i : i + 1], problems[i][1][None], keep=keep[i : i + 1])
        assert torch.allclose(new[i], one[0], atol=1e-9)


def test_a_row_updated_by_the_sweep_is_optimal_for_its_last_removals():
    """If only the first columns go, everything to their right makes up for them: the sweep then is least squares."""
    _, w, h = problem(8, 4, seed=9)
    keep = torch.ones(4, 8, dtype=torch.bool)
    keep[:, :3] = False
    new, _ = sparsegpt.sweep(hessian.reverse_factor(h[None], torch.float64), w[None], keep=keep[None])
    assert torch.allclose(new[0], least_squares.on_mask(h, w, keep), atol=1e-7)
