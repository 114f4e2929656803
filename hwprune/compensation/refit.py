"""Least squares of one layer, as far as examples confirm it that nothing was fitted to.

``min ||(W + D) x - y||^2 + ridge ||D||^2`` over the change D. Both the strength of the ridge and how much of D is applied come
from held-out examples: of several strengths the one with the least error there, times the factor in [0, 1] that makes it least.
Where a change does not hold up at all the factor is 0, and the layer stays as it was.

A fixed weak ridge fits some hundred sentences by heart, and loses on all others; its own examples can't see it
(`benchmarks/compensation.py`, MiniLM).
"""

from __future__ import annotations

import torch

from hwprune.second_order import hessian, least_squares

STRENGTHS = (0.003, 0.03, 0.3, 3.0)
"""Ridges as shares of the Gram matrix's mean diagonal."""

Sample = tuple[torch.Tensor, torch.Tensor]
"""Inputs (G, rows, d) and wanted outputs (G, rows, out / G), float32."""


def refit(
    fitted: Sample, held: Sample | None, old: torch.Tensor, keep: torch.Tensor | None, *, movable: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """New weights of a layer.

    Args:
        fitted, held: of the examples to fit to, and of those that are held out; None: there are too few to hold any out.
        old: (G, out / G, d) float64, where the ridge pulls to.
        keep: the same shape, bool: what may differ from zero; None: all.
        movable: a constant may be added to the outputs.

    Returns:
        weights (G, out / G, d) float64, and the constants (G, out / G) that bring the outputs' mean to the wanted one.
    """
    x, y = fitted
    new = old.clone()
    centre_x, centre_y = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    if movable:
        x, y = x - centre_x, y - centre_y
    left = y - x @ old.float().mT
    rows = x.shape[1]
    gram = (x.mT @ x).double() / rows
    cross = (left.mT @ x).double() / rows  # (G, out / G, d)
    if held is not None:
        hx, hy = (held[0] - centre_x, held[1] - centre_y) if movable else held
        held_left = hy - hx @ old.float().mT
    for g in range(len(old)):
        scale = float(gram[g].diagonal().mean())
        if not scale > 0:
            continue
        strengths = STRENGTHS if held is not None else (hessian.DAMPING,)
        best: tuple[float, torch.Tensor, float] | None = None
        for strength in strengths:
            change = _change(gram[g], cross[g], strength * scale, None if keep is None else keep[g])
            if held is None:
                best = (0.0, change, 1.0)
                break
            effect = hx[g] @ change.float().T
            energy, agreement = float(effect.double().square().sum()), float((effect.double() * held_left[g].double()).sum())
            factor = min(max(agreement / energy, 0.0), 1.0) if energy > 0 else 0.0
            gain = 2 * factor * agreement - factor * factor * energy
            if best is None or gain > best[0]:
                best = (gain, change, factor)
        assert best is not None
        new[g] = old[g] + best[2] * best[1]
    means = [pair for pair in (fitted, held) if pair is not None]
    all_x = torch.cat([pair[0] for pair in means], dim=1).double().mean(dim=1)
    all_y = torch.cat([pair[1] for pair in means], dim=1).double().mean(dim=1)
    return new, all_y - (new @ all_x[:, :, None])[:, :, 0]


def _change(gram: torch.Tensor, cross: torch.Tensor, ridge: float, keep: torch.Tensor | None) -> torch.Tensor:
    """(out / G, d): the change that the ridge allows."""
    damped = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if keep is None:
        return torch.cholesky_solve(cross.T, hessian.cholesky(damped)).T
    return least_squares.masked_gradient(damped, cross, torch.zeros_like(cross), keep)
