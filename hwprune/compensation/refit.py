"""Least squares of one layer, as far as examples confirm it that nothing was fitted to.

``min ||(W + D) x - y||^2 + ridge ||D||^2`` over the change D. Both the strength of the ridge and how much of D is applied come
from held-out examples: of several strengths the one with the least error there, times the factor in [0, 1] that makes it least.
Where a change does not hold up at all the factor is 0, and the layer stays as it was.

A fixed weak ridge fits some hundred sentences by heart, and loses on all others; its own examples can't see it
(`benchmarks/compensation.py`, MiniLM).
"""

from __future__ import annotations

from collections.abc import Callable

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
    (x, y), (hx, hy) = fitted, held
    centre, mean = torch.zeros_like(x[:, :1]), torch.zeros_like(y[:, :1])
    if constant is not None:
        centre, mean = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
        missing = (mean.double() - centre.double() @ old.mT)[:, 0] - shift
        held_mean = (hy.mean(dim=1, keepdim=True).double() - hx.mean(dim=1, keepdim=True).double() @ old.mT)[:, 0] - shift
        shift += _confirmed(missing, held_mean)[:, None] * missing
    x, hx = x - centre, hx - centre
    gram = (x.mT @ x).double() / x.shape[1]
    # What the old weights leave, without computing their outputs: (y - old x) x^T = y x^T - old x x^T.
    cross = ((y - mean).mT @ x).double() / x.shape[1] - old @ gram  # (G, out / G, d)
    held_left = hy - mean - hx @ old.float().mT
    for g in range(len(old)):
        scale = float(gram[g].diagonal().mean())
        if not scale > 0:
            continue

        def attempt(strength: float, g: int = g, scale: float = scale) -> tuple[float, float, torch.Tensor]:
            change = _change(gram[g], cross[g], strength * scale, None if keep is None else keep[g])
            effect = (hx[g] @ change.float().T).double()
            energy, agreement = float(effect.square().sum()), float((effect * held_left[g].double()).sum())
            factor = min(max(agreement / energy, 0.0), 1.0) if energy > 0 else 0.0
            return 2 * factor * agreement - factor * factor * energy, factor, change

        gain, factor, change = _climb(attempt)
        if gain > 0:
            new[g] += factor * change
            if constant is not None:
                shift[g] -= factor * change @ centre[g, 0].double()
    return new, shift


def _climb(attempt: Callable[[float], tuple[float, float, torch.Tensor]]) -> tuple[float, float, torch.Tensor]:
    """The best attempt, from the strengths in the middle to where it gets better: gains have one peak."""
    middle = len(STRENGTHS) // 2
    weaker, best = attempt(STRENGTHS[middle - 1]), attempt(STRENGTHS[middle])
    rest = STRENGTHS[middle + 1 :]
    if weaker[0] >= best[0]:
        best, rest = weaker, STRENGTHS[: middle - 1][::-1]
    for strength in rest:
        other = attempt(strength)
        if other[0] <= best[0]:
            break
        best = other
    return best


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
