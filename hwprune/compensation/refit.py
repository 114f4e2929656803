"""Least squares of one layer, as far as examples confirm it that nothing was fitted to.

``min ||(W + D) x - y||^2 + ridge ||D||^2`` over the change D. Both the strength of the ridge and how much of D is applied come
from held-out examples: of several strengths the one with the least error there, times the factor in [0, 1] that makes it least.
With both decided, D is fitted to all examples. Where a change does not hold up at all the factor is 0, and the layer stays as it
was.

A fixed weak ridge fits some hundred sentences by heart, and loses on all others; its own examples can't see it
(`benchmarks/compensation.py`, MiniLM).
"""

from __future__ import annotations

from typing import NamedTuple

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
    rows = x.shape[1] + hx.shape[1]
    centre, mean = torch.zeros_like(x[:, :1]), torch.zeros_like(y[:, :1])
    if constant is not None:
        centre, mean = x.mean(dim=1, keepdim=True), y.mean(dim=1, keepdim=True)
    x, y, hx, hy = x - centre, y - mean, hx - centre, hy - mean
    gram = (x.mT @ x).double() / x.shape[1]
    product = (y.mT @ x).double() / x.shape[1]  # (G, out / G, d)
    # What the old weights leave, without computing their outputs: (y - old x) x^T = y x^T - old x x^T.
    cross = product - old @ gram
    held_left = hy - hx @ old.float().mT
    found = [_choose(gram[g], cross[g], None if keep is None else keep[g], hx[g], held_left[g]) for g in range(len(old))]
    # How strongly and how far is decided; the fit itself takes all examples.
    more, more_mean = torch.zeros_like(centre, dtype=old.dtype), torch.zeros_like(mean, dtype=old.dtype)
    if constant is not None:
        more, more_mean = (part.double().sum(dim=1, keepdim=True) / rows for part in (hx, hy))
        whole, whole_mean = centre.double() + more, mean.double() + more_mean
        missing, held_missing = (
            (target - inputs @ old.mT)[:, 0] - shift
            for target, inputs in (
                (mean.double(), centre.double()),
                (mean.double() + hy.double().mean(dim=1, keepdim=True), centre.double() + hx.double().mean(dim=1, keepdim=True)),
            )
        )
        confirmed = _confirmed(missing, held_missing)[:, None]
        shift += confirmed * ((whole_mean - whole @ old.mT)[:, 0] - shift)
    if not any(chosen.gain > 0 for chosen in found):
        return new, shift
    gram = (x.shape[1] * gram + (hx.mT @ hx).double()) / rows - more.mT @ more
    cross = (x.shape[1] * product + (hy.mT @ hx).double()) / rows - more_mean.mT @ more - old @ gram
    for g, chosen in enumerate(found):
        if chosen.gain > 0:
            change = chosen.factor * _change(gram[g], cross[g], chosen.ridge, None if keep is None else keep[g])
            new[g] += change
            if constant is not None:
                shift[g] -= change @ (centre.double() + more)[g, 0]
    return new, shift


class _Chosen(NamedTuple):
    """How a layer's change is made, and by how much it lessens the held-out examples' squared error."""

    gain: float
    factor: float = 0.0
    ridge: float = 0.0


def _choose(
    gram: torch.Tensor, cross: torch.Tensor, keep: torch.Tensor | None, held: torch.Tensor, held_left: torch.Tensor
) -> _Chosen:
    """The strength and the factor that held-out examples want.

    Args:
        gram, cross: of the examples that are fitted to.
        held, held_left: inputs of the others (rows, d), and what the old weights leave of their outputs (rows, out / G).
    """
    scale = float(gram.diagonal().mean())
    if not scale > 0:
        return _Chosen(0.0)

    def attempt(strength: float) -> _Chosen:
        effect = (held @ _change(gram, cross, strength * scale, keep).float().T).double()
        energy, agreement = float(effect.square().sum()), float((effect * held_left.double()).sum())
        factor = min(max(agreement / energy, 0.0), 1.0) if energy > 0 else 0.0
        return _Chosen(2 * factor * agreement - factor * factor * energy, factor, strength * scale)

    # From the strengths in the middle to where it gets better: gains have one peak.
    middle = len(STRENGTHS) // 2
    weaker, best = attempt(STRENGTHS[middle - 1]), attempt(STRENGTHS[middle])
    rest = STRENGTHS[middle + 1 :]
    if weaker.gain >= best.gain:
        best, rest = weaker, STRENGTHS[: middle - 1][::-1]
    for strength in rest:
        other = attempt(strength)
        if other.gain <= best.gain:
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
