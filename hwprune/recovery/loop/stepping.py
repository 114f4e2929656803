"""One step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from hwprune.errors import CandidateFailure
from hwprune.recovery.loop.losses import STAGE, Losses, said
from hwprune.recovery.loop.optimizer import optimizer_of, set_rate
from hwprune.recovery.loop.train_batches import Batch, Batches
from hwprune.recovery.loop.training import NotFinite, Training, TrainingState


class Stepper:
    """Makes the steps of one training; weights, masks and ``state`` move with each."""

    def __init__(self, training: Training, state: TrainingState, batches: Batches, loss: Losses) -> None:
        self.training, self.state, self.batches, self.loss = training, state, batches, loss

    def steps(self) -> tuple[int, int]:
        """(steps in an epoch, steps in all)."""
        a_epoch = math.ceil(self.batches.count() / self.training.plan.accumulate)
        return a_epoch, max(1, round(self.training.plan.epochs * a_epoch))

    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer at the state's rate."""
        training = self.training
        return optimizer_of(
            training.module, training.plan, self.state.rate, self.steps()[1], training.frozen, training.sparsifier
        )

    def step(self, group: Sequence[Batch], optimizer: torch.optim.Optimizer, total: int, *, at_once: bool = False) -> None:
        """One step over a few batches.

        Args:
            total: steps in all.
            at_once: all sparsity is there at once, instead of following the schedule.

        Raises:
            NotFinite: the loss or the gradient is not finite.
            CandidateFailure: the backward pass raises.
        """
        training, state, plan = self.training, self.state, self.training.plan
        self.loss.train()
        optimizer.zero_grad(set_to_none=True)
        for inputs, targets in group:
            loss = self.loss(inputs, targets) / len(group)
            if not bool(torch.isfinite(loss)):
                raise NotFinite("the loss is not finite")
            try:
                loss.backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:  # a loss without a gradient, or no memory left
                raise CandidateFailure(STAGE, f"the backward pass raised {said(error)}") from error
            state.losses.append(float(loss.detach()) * len(group))
            state.examples += len(inputs[0])
        if training.sparsifier is not None:
            training.sparsifier.before_step(training.module)
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, plan.clip or math.inf)
        if not bool(torch.isfinite(norm)):
            raise NotFinite("the gradient is not finite")
        progress = 1.0 if at_once else min(1.0, (state.step + 1) / total)
        set_rate(optimizer, state.rate, (state.step + 0.5) / total, plan.warmup)
        optimizer.step()
        state.step += 1
        if training.sparsifier is not None:
            training.sparsifier.after_step(training.module, optimizer, progress)
        self._average()

    def _average(self) -> None:
        """Move the average of the weights, where the plan wants one; what is masked stays zero in it."""
        if not self.training.plan.average:
            return
        held, mean = self.training.held_masks, self.state.mean
        for name, parameter in self.training.module.named_parameters():
            value = parameter.detach()
            if name not in mean:
                mean[name] = value.clone()
            mean[name].lerp_(value, 1 - self.training.plan.average)
            if name in held:
                mean[name].masked_fill_(~held[name], 0.0)
