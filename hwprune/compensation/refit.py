"""Least squares of one layer, as far as examples confirm it that nothing was fitted to.

``min ||(W + D) x - y||^2 + ridge ||D||^2`` over the change D. Examples that are held out decide how strong the ridge is and how
much of D is applied: the weakest ridge with which all of D leaves little more error there than the best of all ridges and factors
in [0, 1] does, or else that best. With both decided, D is fitted to all examples. Where a change does not hold up at all the
factor is 0, and the layer stays as it was.

The weakest, not the best: what a ridge holds back is missing in the same way for every example, and adds up over the layers,
while the noise of a weak one differs from output to output and averages out. The least error of each layer is not the least
divergence of the network. A fixed weak ridge, though, fits some hundred sentences by heart, and loses on all others; its own
examples can't see it (both: `benchmarks/compensation.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from hwprune.second_order import hessian, least_squares, products

STRENGTHS = (0.01, 0.1, 1.0)
"""Ridges as shares of the Gram matrix's mean diagonal. Weaker ones make no difference to what a network puts out."""
NOISE = 0.05
"""What a weaker ridge may add to the held-out examples' squared error, as a share of what it was."""

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
    gram = products.gram(x).double() / x.shape[1]
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
    if not any(chosen.factor > 0 for chosen in found):
        return new, shift
    gram = (x.shape[1] * gram + products.gram(hx).double()) / rows - more.mT @ more
    cross = (x.shape[1] * product + (hy.mT @ hx).double()) / rows - more_mean.mT @ more - old @ gram
    for g, chosen in enumerate(found):
        if chosen.factor > 0:
            change = chosen.factor * _change(gram[g], cross[g], chosen.ridge, None if keep is None else keep[g])
            new[g] += change
            if constant is not None:
                shift[g] -= change @ (centre.double() + more)[g, 0]
    return new, shift


class _Chosen(NamedTuple):
    """How a layer's change is made: by how much it lessens the held-out examples' squared error, and what is applied of it."""

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
    # What a handful of positions say is luck.
    allowed = NOISE * float(held_left.double().square().sum()) if len(held) >= len(gram) else 0.0
    best, whole = _Chosen(0.0), []
    if keep is None:  # single precision tells strengths apart: the ridge bounds the condition number by d / STRENGTHS[0]
        gram, cross = gram.float(), cross.float()
    for strength in STRENGTHS:  # gains have one peak
        effect = (held @ _change(gram, cross, strength * scale, keep).float().T).double()
        energy, agreement = float(effect.square().sum()), float((effect * held_left.double()).sum())
        factor = min(max(agreement / energy, 0.0), 1.0) if energy > 0 else 0.0
        whole.append(_Chosen(2 * agreement - energy, 1.0, strength * scale))
        gain = 2 * factor * agreement - factor * factor * energy
        if gain <= best.gain and best.gain > 0:
            break
        best = max(best, _Chosen(gain, factor, strength * scale))
    if not best.gain > 0:
        return best
    return next((one for one in whole if one.gain >= best.gain - allowed), best)


def _confirmed(wanted: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """(G,): what part, from none to all, of a change of the constants (G, out / G) held-out examples ask for."""
    energy = wanted.square().sum(dim=1)
    return ((wanted * seen).sum(dim=1) / energy.clamp(min=1e-300)).clamp(0.0, 1.0)


def _change(gram: torch.Tensor, cross: torch.Tensor, ridge: float, keep: torch.Tensor | None) -> torch.Tensor:
    """(out / G, d): the change that the ridge allows, as precise as ``gram`` is."""
    damped = gram.clone()
    damped.diagonal().add_(ridge)
    if keep is not None:
        return least_squares.masked_gradient(damped, cross, torch.zeros_like(cross), keep)
    factor, info = torch.linalg.cholesky_ex(damped)
    if bool(info.any()):  # only in single precision, if at all
        factor = hessian.cholesky(damped.double()).to(damped.dtype)
    return torch.cholesky_solve(cross.T, factor).T
