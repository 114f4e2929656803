"""PLATON."""

from __future__ import annotations

from typing import final

import torch
from torch import nn

from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.base import FixedMask
from hwprune.recovery.sparsifiers.mask_learner import ScoreLearner


@final
class Platon(ScoreLearner):
    """PLATON: sensitivity times its uncertainty (Zhang et al. 2022, arXiv 2206.12562).

    I = |w g|, smoothed to mean M with factor `BETA1`; U = |I - M| smoothed with `BETA2`; the score is M * U, of an axis the sum
    over what makes it. Low scores are zeroed after each step; they go on being trained, and may come back.
    """

    BETA1, BETA2 = 0.85, 0.95
    TABLES: tuple[str, ...] = ("scores", "_mean", "_uncertain")

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan) -> None:
        super().__init__(pruner, recipe, plan)
        self._mean: dict[str, torch.Tensor] = {}
        self._uncertain: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """Scores first: after the step what was zeroed is not zero, so that its score lives on."""
        parameters = dict(module.named_parameters())
        for name, (unit, _) in self.choices.items():
            if unit.axis is None:
                weight = parameters[name]
                if weight.grad is None:
                    continue
                now = (weight * weight.grad).abs()
            else:
                now = torch.zeros_like(self.scores[name])
                for parameter, dim, index in self._places[name]:
                    tensor = parameters[parameter]
                    if tensor.grad is not None:
                        each = (tensor * tensor.grad).abs().movedim(dim, 0).reshape(len(index), -1).sum(dim=1)
                        now.index_add_(0, index[index >= 0], each[index >= 0])
            mean = self._mean.setdefault(name, torch.zeros_like(now)).lerp_(now, 1 - self.BETA1)
            apart = (now - mean).abs()
            uncertain = self._uncertain.setdefault(name, torch.zeros_like(now)).lerp_(apart, 1 - self.BETA2)
            self.scores[name].copy_(mean * uncertain)
        super().after_step(module, optimizer, progress)

    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Until the end weights alone are zeroed, as in the paper.

        With its moments zeroed too, each step of a masked weight would be Adam's first one without its correction: 3.2 learning
        rates long whatever the gradient, and |w g| of what is masked too large by as much.
        """
        if self._updates >= self.updates:
            super().hold(module, optimizer)
        else:
            FixedMask(self.held_masks()).hold(module)
