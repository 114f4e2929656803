"""Weights that make the dense layer's outputs of a pruned model's inputs, as far as windows that were not fitted agree.

W are the dense weights, x the dense model's inputs of the layer, y what the layer is given after the pruned ones before it, V0
the weights that it has. Minimised is ``|W x - V y|^2 + ridge |V - V0|^2``; the ridge, or V0 itself, is what is best for windows
that were held out.
"""

from __future__ import annotations

import torch

RIDGES = (0.01, 0.1, 1.0)
"""Strengths, in mean squares of an input."""


def moved(
    start: torch.Tensor, dense: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor, ridge: float | None
) -> torch.Tensor:
    """V, (out, columns of y).

    Args:
        start, dense: V0 and W.
        hessian, cross: float64 means of y y^T and x y^T.
        ridge: None: V0.
    """
    if ridge is None:
        return start
    damped = hessian + ridge * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)
    rest = dense.double() @ cross - start.double() @ hessian
    change: torch.Tensor = torch.linalg.solve(damped, rest.T).T
    return (start.double() + change).to(start.dtype)


def error(new: torch.Tensor, dense: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor) -> float:
    """Mean ``|V y - W x|^2`` less the mean ``|W x|^2``, which all V share; arguments as for `moved`."""
    v, w = new.double(), dense.double()
    return float((((v @ hessian) - 2 * (w @ cross)) * v).sum())


def best_ridge(
    start: torch.Tensor,
    dense: torch.Tensor,
    fitted: tuple[torch.Tensor, torch.Tensor],
    held: tuple[torch.Tensor, torch.Tensor],
) -> float | None:
    """The strength whose weights are best for windows that they have not seen; None: V0 is.

    Args:
        fitted, held: (hessian, cross) of each.
    """
    errors = {ridge: error(moved(start, dense, *fitted, ridge), dense, *held) for ridge in (None, *RIDGES)}
    return min(errors, key=lambda ridge: errors[ridge])
