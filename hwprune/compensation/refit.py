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
    fitted: Sample, held: Sample | None, old: torch.Tensor, keep: torch.Tensor | None, constant: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """New weights and constants of a layer; the old ones where no examples are held out, because nothing can confirm a change.

    Args:
        fitted, held: of the examples to fit to, and of those that are held out; None: there are too few to hold any out.
        old: (G, out / G, d) float64, where the ridge pulls to.
        keep: the same shape, bool: what may differ from zero; None: all.
        constant: (G, out / G) float64, what is added to the outputs now; None: nothing can be added.

    Returns:
        weights (G, out / G, d) and constants (G, out / G), float64.
    """
    new = old.clone()
    shift = torch.zeros(old.shape[:2], dtype=old.dtype, device=old.device) if constant is None else constant.clone()
    if held is None:
        return new, shift
    left, held_left = (wanted - inputs @ old.float().mT - shift.float()[:, None] for inputs, wanted in (fitted, held))
    x, hx = fitted[0], held[0]
    centre = x.mean(dim=1, keepdim=True) if constant is not None else torch.zeros_like(x[:, :1])
    if constant is not None:
        missing = left.mean(dim=1).double()
        shift += _confirmed(missing, held_left.mean(dim=1).double())[:, None] * missing
        left, held_left = left - left.mean(dim=1, keepdim=True), held_left - left.mean(dim=1, keepdim=True)
    x, hx = x - centre, hx - centre
    gram = (x.mT @ x).double() / x.shape[1]
    cross = (left.mT @ x).double() / x.shape[1]  # (G, out / G, d)
    for g in range(len(old)):
        scale = float(gram[g].diagonal().mean())
        if not scale > 0:
            continue
        best = (0.0, 0.0, old[g])
        for strength in STRENGTHS:
            change = _change(gram[g], cross[g], strength * scale, None if keep is None else keep[g])
            effect = (hx[g] @ change.float().T).double()
            energy, agreement = float(effect.square().sum()), float((effect * held_left[g].double()).sum())
            factor = min(max(agreement / energy, 0.0), 1.0) if energy > 0 else 0.0
            gain = 2 * factor * agreement - factor * factor * energy
            if gain > best[0]:
                best = (gain, factor, change)
        if best[0] > 0:
            change = best[1] * best[2]
            new[g] += change
            if constant is not None:
                shift[g] -= change @ centre[g, 0].double()
    return new, shift


def _confirmed(wanted: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """(G,): what part, from none to all, of a change of the constants (G, out / G) held-out examples ask for."""
    energy = wanted.square().sum(dim=1)
    return ((wanted * seen).sum(dim=1) / energy.clamp(min=1e-300)).clamp(0.0, 1.0)


def _change(gram: torch.Tensor, cross: torch.Tensor, ridge: float, keep: torch.Tensor | None) -> torch.Tensor:
    """(out / G, d): the change that the ridge allows."""
    damped = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if keep is None:
        return torch.cholesky_solve(cross.T, hessian.cholesky(damped)).T
    return least_squares.masked_gradient(damped, cross, torch.zeros_like(cross), keep)
