"""Growing regularisation, and lasso."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import nn

from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.mask_learner import Decision, ScoreLearner, along


@final
class Growing(ScoreLearner):
    """Growing regularisation: an L2 penalty that grows on what is to go, until it is gone by itself (GReg-1; Wang et al. 2021,
    arXiv 2012.09243). What is to go is chosen once, by L1 norm.

    The penalty acts on the weights themselves, as AdamW's decay does, and rises linearly so far that over the whole training
    exp(-`TOTAL`) of a weight would be left of it.
    """

    TOTAL = 6.0
    SCALARS = ("_updates", "_before")

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan) -> None:
        super().__init__(pruner, recipe, plan)
        parameters = dict(pruner.graph.module.named_parameters())
        with torch.no_grad():
            for name, (unit, _) in self.choices.items():
                if unit.axis is None:
                    self.scores[name].copy_(parameters[name].abs())
                    continue
                for parameter, dim, index in self._places[name]:
                    each = parameters[parameter].abs().movedim(dim, 0).reshape(len(index), -1).sum(dim=1)
                    self.scores[name].index_add_(0, index[index >= 0], each[index >= 0])
        self.decision = super().decide(1.0)
        self._goes = {name: ~mask for name, mask in self.dense_masks().items()}
        self._before = 0.0

    def decide(self, share: float) -> Decision:  # noqa: ARG002 - it was decided at the beginning
        return self.decision

    @torch.no_grad()
    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is zeroed before the end."""
        if self._updates >= self.updates:
            super().hold(module, optimizer)

    @torch.no_grad()
    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
        factor = float(math.exp(-self.TOTAL * (progress**2 - self._before**2)))
        self._before = progress
        parameters = dict(module.named_parameters())
        for name, goes in self._goes.items():
            parameters[name].copy_(torch.where(goes.to(parameters[name].device), parameters[name] * factor, parameters[name]))
        super().after_step(module, optimizer, progress)


@final
class Lasso(ScoreLearner):
    """L1 on single weights, group lasso on axes, and removal by norm at the end (Wen et al. 2016, arXiv 1608.03665).

    The penalty acts as its proximal step after each step of the optimizer: a weight, or the norm of a group, shrinks by a
    constant and stops at zero. The constant is such that what the recipe removes would be gone at the end if nothing else moved
    it.
    """

    SCALARS = ("_updates", "_before")

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan) -> None:
        super().__init__(pruner, recipe, plan)
        self._shrink: dict[str, float] = {}
        self._before = 0.0
        for name, (_, choice) in self.choices.items():
            norms = self._norms(pruner.graph.module, name).reshape(-1)
            self._shrink[name] = float(norms.sort().values[min(len(norms) - 1, round(choice.sparsity * len(norms)))])

    @torch.no_grad()
    def after_step(self, module: nn.Module, optimizer: torch.optim.Optimizer, progress: float) -> None:
        parameters = dict(module.named_parameters())
        for name, (unit, _) in self.choices.items():
            if self.short_trial:  # to shrink everything within a few steps is another thing than to do so in a whole training
                break
            norms = self._norms(module, name)
            factor = (1 - self._shrink[name] * (progress - self._before) / norms.clamp(min=1e-12)).clamp(min=0)
            if unit.axis is None:
                parameters[name].mul_(factor)
                continue
            for parameter, dim, index in self._places[name]:
                values = torch.where(index >= 0, factor[index.clamp(min=0)], torch.ones((), device=factor.device))
                parameters[parameter].mul_(along(values, dim, parameters[parameter].ndim))
        self._before = progress
        super().after_step(module, optimizer, progress)

    def decide(self, share: float) -> Decision:
        if share < 1:
            return self.decision
        for name in self.choices:
            self.scores[name].data.copy_(self._norms(self.pruner.graph.module, name))
        return super().decide(share)
