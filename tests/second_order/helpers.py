"""What several test files of this folder need."""

from __future__ import annotations

import torch

from hwprune.second_order import hessian


def inputs(d, rows=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows or 6 * d, d, generator=generator, dtype=torch.float64)
    return x @ torch.randn(d, d, generator=generator, dtype=torch.float64)


def problem(d, r, seed=0):
    x = inputs(d, seed=seed)
    w = torch.randn(r, d, generator=torch.Generator().manual_seed(seed + 100), dtype=torch.float64)
    return x, w, hessian.damp(x.T @ x / len(x), 1e-9)


def best_loss(x, w, keep):
    """The true quadratic loss of the best weights on a support, by `torch.linalg.lstsq` on the data themselves."""
    y = x @ w.T
    if not keep.any():
        return float(y.square().sum() / len(x))
    solved = torch.linalg.lstsq(x[:, keep], y).solution
    return float((x[:, keep] @ solved - y).square().sum() / len(x))


def greedy_by_brute_force(problems, n, columns):
    """Remove the group whose true loss (all consumers, best weights) grows least, again and again."""
    gone, losses, before = [], [], 0.0
    for _ in range(n):
        trials = []
        for i in range(n):
            if i in gone:
                continue
            total = 0.0
            for x, w, scale in problems:
                keep = torch.ones(x.shape[1], dtype=torch.bool)
                keep[columns[[*gone, i]].reshape(-1)] = False
                total += scale * best_loss(x, w, keep)
            trials.append((total, i))
        total, i = min(trials)
        gone.append(i)
        losses.append(total - before)
        before = total
    return gone, losses
