"""Heads of early exits: linear ones, fitted on what a frozen model computes until there.

The wanted answers are a mean of the labels and of what the whole model answers (Hinton et al. 2015): where that is unsure, an
exit should be, too. The decay is chosen on examples that were left out.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
HELD_OUT = 5
"""One in so many examples chooses the decay."""
TEACHER = 0.5
STEPS = 60

Array = np.ndarray[tuple[int, int], np.dtype[np.float32]]


def fit(features: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor | None) -> tuple[Array, Array]:
    """Weight (classes, features) and bias (1, classes) of the logits of a head.

    Args:
        features: (N, features).
        taught: probabilities of the whole model, (N, classes).
        labels: classes, (N,); None: there are none.
    """
    wanted = taught.double()
    if labels is not None:
        wanted = TEACHER * wanted + (1 - TEACHER) * nn.functional.one_hot(labels.long(), taught.shape[1]).double()
    x = features.double()
    mean, scale = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    x = (x - mean) / scale
    held = torch.arange(len(x)) % HELD_OUT == 0
    losses = {decay: _loss(_solved(x[~held], wanted[~held], decay), x[held], wanted[held]) for decay in DECAYS}
    weight, bias = _solved(x, wanted, min(losses, key=lambda decay: losses[decay]))
    weight = weight / scale
    bias = bias - weight @ mean
    return weight.float().numpy(), bias.float()[None].numpy()


def _solved(x: torch.Tensor, wanted: torch.Tensor, decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.zeros(wanted.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(wanted.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = _cross_entropy((weight, bias), x, wanted) + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _cross_entropy(head: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    weight, bias = head
    return -(wanted * (x @ weight.T + bias).log_softmax(dim=1)).sum(dim=1).mean()


def _loss(head: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(_cross_entropy(head, x, wanted))
