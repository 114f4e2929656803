"""The optimizer of a training run, and the course of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import nn

from hwprune.errors import CandidateFailure
from hwprune.recovery.loop.losses import STAGE
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.base import Sparsifier


def optimizer_of(
    module: nn.Module, plan: Plan, rate: float, steps: int, frozen: Collection[str], sparsifier: Sparsifier | None
) -> torch.optim.Optimizer:
    """An optimizer for a module's parameters and a sparsifier's own. Weights decay, biases and norms do not.

    Each group has its ``scale``: what `set_rate` multiplies the rate by.

    Args:
        rate: highest learning rate.
        steps: of the whole run.
        frozen: names of parameters that stay as they are.

    Raises:
        CandidateFailure: nothing can be trained.
    """
    named = [(n, p) for n, p in module.named_parameters() if n not in frozen]
    extra = sparsifier.extra() if sparsifier is not None else []
    if not named and not extra:
        raise CandidateFailure(STAGE, "every parameter of the model is frozen (requires_grad=False): nothing can be trained")
    groups = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": plan.decay, "scale": 1.0},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0, "scale": 1.0},
        {"params": extra, "weight_decay": 0.0, "scale": _scale_of_extra(sparsifier, rate, steps)},
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=rate)


def set_rate(optimizer: torch.optim.Optimizer, rate: float, done: float, warmup: float) -> None:
    """The rate of a moment: a line up, then a cosine down to a hundredth. ``done``: share of all steps."""
    if done < warmup:
        share = (done + 1e-3) / (warmup + 1e-3)
    else:
        share = 0.01 + 0.99 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * rate * share


def _scale_of_extra(sparsifier: Sparsifier | None, rate: float, steps: int) -> float:
    score_range = sparsifier.score_range if sparsifier is not None else None
    if score_range is None or sparsifier is None:
        return 1.0
    if sparsifier.noise_range is not None:
        score_range = min(score_range, sparsifier.noise_range * math.sqrt(steps))
    # Adam moves by about the rate in each step, and the schedule's mean is a half of its highest.
    return score_range / (0.5 * max(rate, 1e-12) * steps)
