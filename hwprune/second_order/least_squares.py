"""Least squares on what is kept: ``min tr((W' - W) H (W' - W)^T)`` over W' that are zero elsewhere.

With a damped H that is a ridge towards the dense weights, not towards zero. Every greedy OBS trace ends at this solution for its
support (methods 2.3), so orders come from `structured` and `exact`, weights from here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hwprune.second_order.hessian import cholesky

CHUNK_BYTES = 256_000_000
"""Largest batch of systems solved at once."""


def on_columns(h: torch.Tensor, w: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Best weights when all rows keep the same columns.

    Args:
        h: (d, d) float64, positive definite.
        w: (r, d) dense weights.
        keep: (d,) bool, True = stays.

    Returns:
        (r, kept) float64.
    """
    kept = keep.nonzero().squeeze(1)
    rows = h.index_select(0, kept)
    factor = cholesky(rows.index_select(1, kept))
    return torch.cholesky_solve(rows @ w.double().T, factor).T


def nested(
    h: torch.Tensor, w: torch.Tensor, order: torch.Tensor, counts: Sequence[int]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Best weights for several supports that are prefixes of one order, from one factorisation.

    The Cholesky factor of a leading block is the leading block of the factor, and so is the first triangular solve; a level
    costs one triangular solve more.

    Args:
        h: (d, d); w: (r, d).
        order: (d,) columns, the one that stays longest first.
        counts: how many columns each level keeps.

    Returns:
        For each level the weights (r, count), columns in ``order``; and the losses (len(counts),) of the outputs.
    """
    permuted = h.index_select(0, order).index_select(1, order)
    factor = cholesky(permuted)
    dense = w.double().index_select(1, order)
    half = torch.linalg.solve_triangular(factor, permuted @ dense.T, upper=False)  # L^-1 H W^T
    energy = half.square().sum(dim=1).cumsum(dim=0)
    weights, losses = [], []
    for count in counts:
        if count == 0:
            weights.append(dense[:, :0])
            losses.append(energy[-1])
            continue
        leading = factor[:count, :count].T
        weights.append(torch.linalg.solve_triangular(leading, half[:count], upper=True).T)
        losses.append(energy[-1] - energy[count - 1])
    return weights, torch.stack(losses).clamp(min=0)


def on_mask(h: torch.Tensor, w: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Best weights when every row has a support of its own.

    Args:
        h: (d, d); w: (r, d); keep: (r, d) bool.

    Returns:
        (r, d) float64, zero where not kept. Costs r factorisations of d x d.
    """
    rows, d = w.shape
    target = w.double() @ h
    step = max(1, CHUNK_BYTES // (8 * d * d))
    result = torch.zeros(rows, d, dtype=torch.float64, device=w.device)
    different, which = torch.unique(keep, dim=0, return_inverse=True)
    for start in range(0, len(different), step):
        masks = different[start : start + step].double()
        systems = h * masks[:, :, None] * masks[:, None, :]
        systems.diagonal(dim1=1, dim2=2).add_(1 - masks)  # what is gone becomes an equation of its own
        factors = cholesky(systems)
        for place in range(len(masks)):
            members = (which == start + place).nonzero().squeeze(1)
            right = (target[members] * masks[place]).T
            result[members] = torch.cholesky_solve(right, factors[place]).T * masks[place]
    return result


def loss(h: torch.Tensor, w: torch.Tensor, new: torch.Tensor) -> float:
    """``tr((new - w) H (new - w)^T)`` for (r, d) weights."""
    change = new.double() - w.double()
    return float(((change @ h) * change).sum())


def masked_gradient(
    h: torch.Tensor, target: torch.Tensor, start: torch.Tensor, keep: torch.Tensor, iterations: int = 40, tolerance: float = 1e-6
) -> torch.Tensor:
    """``min tr(W H W^T) / 2 - tr(W target^T)`` over W that are zero where ``keep`` is not, by conjugate gradients on all rows
    at once.

    For layers so large that a factorisation for each row (`on_mask`) is out of reach (Meng et al. 2024, ALPS, section 3.3): an
    iteration is one product. With a diagonal preconditioner and the ridge in ``h`` some tens of iterations do.

    Args:
        h: (d, d); target, start, keep: (r, d).
    """
    inverse_diagonal = 1 / h.diagonal()
    w = start.double() * keep
    residual = (target - w @ h) * keep
    scaled = residual * inverse_diagonal
    direction = scaled
    energy = (residual * scaled).sum(dim=1)
    stop = energy.sum() * tolerance**2
    for _ in range(iterations):
        product = (direction @ h) * keep
        curvature = (direction * product).sum(dim=1)
        step = torch.where(curvature > 0, energy / curvature.clamp(min=1e-300), torch.zeros_like(energy))
        w = w + step[:, None] * direction
        residual = residual - step[:, None] * product
        scaled = residual * inverse_diagonal
        after = (residual * scaled).sum(dim=1)
        if float(after.sum()) <= float(stop):
            break
        direction = scaled + (after / energy.clamp(min=1e-300))[:, None] * direction
        energy = after
    return w
