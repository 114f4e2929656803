"""Movement and soft movement pruning."""

from __future__ import annotations

from typing import final

import torch
from torch import nn

from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.mask_learner import Decision, ScoreLearner, along


@final
class Movement(ScoreLearner):
    """Movement pruning: what moves away from zero stays (Sanh et al. 2020, arXiv 2005.07683).

    The forward pass uses W * keep_mask(S); the gradient goes straight through the mask, so dS = dL/dW' * W, summed over what
    goes together. Of axes that is the structured variant (Lagunas et al. 2021, arXiv 2109.04838). Weights that are masked now
    go on learning nothing, but their scores move, so that they may come back.

    Args:
        soft: what stays is what scores above a threshold, and a penalty on sigmoid(S) whose weight follows the distance to the
            wanted sparsity lowers the scores; units then share the sparsity as they need it. At the end one threshold over all
            units makes the recipe's sparsity exact. Not for patterns in which weights compete in groups.
    """

    SCALARS = ("_updates", "weight", "_due")
    score_range = 10.0
    """Sanh et al. give scores a rate of 1e-2 beside 3e-5 for weights: over a run they can move by some tens."""
    GAIN = 20.0
    """The speed at which the penalty of the soft variant follows the distance to the wanted sparsity."""

    PRIOR = 1.0
    """The score at the beginning of a weight of the layer's root mean square.

    Scores that begin at zero, as the paper's do, are noise for the first thousands of steps, and what they remove is drawn at
    random: over a short training that ruins a model. Beside `score_range` this is little; it decides where movement has not.
    """
    NOISE_RANGE = 0.5
    """Half of `PRIOR`: what has only been shaken is not torn from its place."""

    def __init__(self, pruner: Pruner, recipe: Recipe, plan: Plan, *, soft: bool = False) -> None:
        super().__init__(pruner, recipe, plan)
        if not soft:
            with torch.no_grad():
                for name, score in self.scores.items():
                    norms = self._norms(pruner.graph.module, name)
                    score.copy_(self.PRIOR * norms / norms.square().mean().sqrt().clamp(min=1e-12))
            self.noise_range = self.NOISE_RANGE
        if soft:
            grouped = sorted({c.pattern for u, c in self.choices.values() if u.axis is None and c.pattern != "unstructured"})
            if grouped:
                raise UsageError(f"soft movement takes axes and unstructured weights, got {', '.join(grouped)}")
        self.soft = soft
        self.weight = 0.0
        self._due = 0.0

    def extra(self) -> list[nn.Parameter]:
        return list(self.scores.values())

    def weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        parameters = dict(module.named_parameters())
        gated: dict[str, torch.Tensor] = {}
        for name, score in self.scores.items():
            unit, _ = self.choices[name]
            if unit.axis is None:
                mask = self.decision.masks.get(name)
                gate = self._gate(score, mask)
                gated[name] = gated.get(name, parameters[name]) * gate
                continue
            gate = self._gate(score, self.decision.keeps.get(name))
            for parameter, dim, index in self._places[name]:
                values = torch.where(index >= 0, gate[index.clamp(min=0)], torch.ones((), device=gate.device))
                gated[parameter] = gated.get(parameter, parameters[parameter]) * along(values, dim, parameters[parameter].ndim)
        return gated

    @staticmethod
    def _gate(score: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        """The mask in the forward pass, the score in the backward pass."""
        value = torch.ones_like(score) if keep is None else keep.to(score.device, score.dtype)
        return value + score - score.detach()

    def penalty(self, module: nn.Module) -> torch.Tensor | None:  # noqa: ARG002
        if not self.soft or self.weight <= 0:
            return None
        return self.weight * torch.stack([score.sigmoid().mean() for score in self.scores.values()]).mean()

    def decide(self, share: float) -> Decision:
        if not self.soft or self.short_trial:
            return super().decide(share)
        self._due = share
        wanted = share * sum(c.sparsity for _, c in self.choices.values()) / len(self.choices)
        if share >= 1:
            return self._exact()
        keeps: dict[str, torch.Tensor] = {}
        masks: dict[str, torch.Tensor] = {}
        gone = []
        for name, (unit, _) in self.choices.items():
            score = self.scores[name].detach().cpu()
            keep = score >= 0  # sigmoid(S) above one half, where it begins
            if not bool(keep.any()):
                keep = score == score.max()
            gone.append(1 - float(keep.float().mean()))
            (keeps if unit.axis is not None else masks)[name] = keep
        self.weight = max(0.0, self.weight + self.GAIN * (wanted - sum(gone) / len(gone)) / self.plan.updates)
        return Decision(keeps, masks)

    def _exact(self) -> Decision:
        """The decision by one threshold for all units, at the recipe's mean sparsity."""
        every = torch.cat([score.detach().reshape(-1).cpu() for score in self.scores.values()])
        total = sum(c.sparsity * self.scores[name].numel() for name, (_, c) in self.choices.items())
        threshold = every.sort().values[min(len(every) - 1, round(total))]
        keeps: dict[str, torch.Tensor] = {}
        masks: dict[str, torch.Tensor] = {}
        for name, (unit, _) in self.choices.items():
            score = self.scores[name].detach().cpu()
            keep = (score >= threshold) | (score == score.max())
            (keeps if unit.axis is not None else masks)[name] = keep
        return Decision(keeps, masks)

    def hold(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Masks act in the forward pass alone until the end: what is masked may come back."""
        if self._updates >= self.updates:
            super().hold(module, optimizer)
