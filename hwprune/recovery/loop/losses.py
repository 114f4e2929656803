"""The loss that training minimises: the workload's loss, the distance to the dense model, and what a sparsifier adds."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from hwprune.errors import CandidateFailure, described
from hwprune.recovery.loop import batch_norms, distillation
from hwprune.recovery.loop.validation import device_of
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.base import Sparsifier
from hwprune.workload.reading import class_axis, first_answer, has_examples
from hwprune.workload.task_loss import Loss, loss_input, task_loss
from hwprune.workload.workload import Workload, all_tensors

STAGE = "recover"
"""Stage of a `CandidateFailure` in training."""
VARIANCE_BATCHES = 8
"""Batches over which the variance of a teacher's outputs is taken, where these are no scores of classes."""


@dataclass(slots=True)
class Losses:
    """The loss of batches; made once for a training run, with models where they will be.

    Args:
        module: what is trained.
        taps: nodes whose outputs are compared with the teacher's.
    """

    module: fx.GraphModule
    workload: Workload
    plan: Plan
    device: torch.device
    sparsifier: Sparsifier | None = None
    teacher: fx.GraphModule | None = None
    taps: Sequence[str] = ()
    normed: bool = field(init=False)
    """Has the model batch norms?"""
    _student: fx.GraphModule | None = field(init=False, default=None)
    """The module with inner outputs beside the answer, where these are compared; the teacher's likewise."""
    _master: nn.Module | None = field(init=False, default=None)
    _still: nn.Module | None = field(init=False, default=None)
    """The trained module with batch norms that keep their statistics; for small batches, or all of them."""
    _loss: Loss | None = field(init=False, default=None)
    """The task's loss, where it counts."""
    _heads: list[tuple[int, int | None, float]] = field(init=False, default_factory=list)
    """(place, axis of the classes, variance) of each of the teacher's outputs; numbers have a variance, no axis."""

    def __post_init__(self) -> None:
        self._loss = task_loss(self.workload, (self.teacher or self.module).eval()) if self.plan.task_weight > 0 else None
        if self.taps and self.plan.features > 0 and self.teacher is not None:
            self._student = distillation.tapped(self.module, self.taps)
            self._master = distillation.tapped(self.teacher, self.taps).eval()
        self.normed = batch_norms.has_any(self.module)
        if self.normed:
            self._still = batch_norms.frozen(self._student or self.module)
        if self.teacher is not None and self.plan.task_weight < 1:
            self._know(self.teacher)

    @torch.no_grad()
    def _know(self, teacher: fx.GraphModule) -> None:
        """Find out the axis of classes, from a split that has targets, or else how far the teacher's outputs spread."""
        inputs, targets = next(self.workload.batches("validation"))
        found = all_tensors(teacher(*self._moved(inputs)))
        first = first_answer(found)
        axis = class_axis(self.workload.scoring, found[first].shape, targets, first)
        others = [
            place for place, output in enumerate(found)
            if place != first and output.is_floating_point() and has_examples(output, len(inputs[0]))
        ]  # fmt: skip
        spread = {first: 1.0}
        if axis is None or others:
            some = itertools.islice(self.workload.batches("train"), VARIANCE_BATCHES)
            answers = [all_tensors(teacher(*self._moved(inputs))) for inputs, _ in some]
            for place in (first, *others):
                spread[place] = float(torch.cat([each[place].float().reshape(-1) for each in answers]).var(unbiased=False))
        self._heads = [(first, axis, spread[first]), *((place, None, spread[place]) for place in others)]

    def train(self, *, mode: bool = True) -> None:
        """Put everything that batches are run through into train mode, or eval mode."""
        for module in (self.module, self._student, self._still):
            if module is not None:
                module.train(mode)

    def __call__(self, inputs: tuple[torch.Tensor, ...], targets: Any) -> torch.Tensor:
        """Scalar; raises `CandidateFailure` if the model or the loss does."""
        plan = self.plan
        inputs, targets = self._moved(inputs), self._moved(targets)
        taken = dict(self.sparsifier.weights(self.module)) if self.sparsifier is not None else {}
        with self._precision():
            mine: tuple[torch.Tensor, ...] = ()
            runner = self._runner(len(inputs[0]))
            try:
                result = torch.func.functional_call(runner, taken, inputs) if taken else runner(*inputs)
            except RuntimeError as error:  # no memory left, for example
                raise CandidateFailure(STAGE, f"the model raised {said(error)}") from error
            if self._student is not None:
                result, mine = result
            parts = []
            if plan.task_weight > 0:
                parts.append(plan.task_weight * self._task(loss_input(self.workload, result), targets))
            if self.teacher is not None and plan.taught:
                with torch.no_grad():
                    answer = (self._master or self.teacher)(*inputs)
                if self._student is not None:
                    answer, inner = answer
                    parts.append(plan.features * distillation.features(mine, inner))
                if plan.task_weight < 1:
                    parts.append((1 - plan.task_weight) * self._taught(result, answer))
            penalty = self.sparsifier.penalty(self.module) if self.sparsifier is not None else None
            if penalty is not None:
                parts.append(penalty)
        return torch.stack([part.float() for part in parts]).sum()

    def _taught(self, result: Any, answer: Any) -> torch.Tensor:
        """The distance to the teacher, a mean over all outputs: none may be ruined unseen."""
        mine, wanted = all_tensors(result), all_tensors(answer)
        if self.workload.scoring.divergence is not None:
            own = self.workload.scoring.divergence(mine, wanted).mean()
            if own.requires_grad:
                return own
        losses = [
            distillation.logits(mine[place], wanted[place], axis, self.plan.temperature, variance)
            for place, axis, variance in self._heads
        ]
        return torch.stack(losses).mean()

    def _task(self, output: Any, targets: Any) -> torch.Tensor:
        assert self._loss is not None
        try:
            loss = self._loss(output, targets)
        except Exception as error:  # the user's loss, or labels that it can't take
            hint = "; the train split has no targets, and distill:EPOCHS needs none" if targets is None else ""
            raise CandidateFailure(STAGE, f"the loss raised {said(error)}{hint}") from error
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise CandidateFailure(STAGE, "the loss must give one number: loss(outputs, targets) -> scalar tensor")
        return loss

    def _runner(self, examples: int) -> nn.Module:
        """The module that a batch of so many examples is run through."""
        auto = self.plan.norms == "auto" and examples < batch_norms.ENOUGH
        if self._still is not None and (auto or self.plan.norms == "frozen"):
            return self._still
        return self._student or self.module

    def _moved(self, given: Any) -> Any:
        """Inputs or targets on the device that trains, in whatever they come."""
        return torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.to(self.device), given)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        wanted = self.plan.precision
        if wanted == "auto":
            wanted = "bf16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        if wanted == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def said(error: Exception) -> str:
    """Kind and first line of somebody else's error."""
    return described(error)


def loss_fault(workload: Workload, module: nn.Module, inputs: tuple[torch.Tensor, ...], targets: Any) -> str | None:
    """The fault of the workload's loss on one batch; None: it can be followed.

    Args:
        module: in eval mode, or its batch norms would be changed by asking.
    """
    device = device_of(module)
    moved = torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.to(device), (inputs, targets))
    try:
        with torch.enable_grad():
            loss = task_loss(workload, module)(loss_input(workload, module(*moved[0])), moved[1])
    except Exception as error:  # the user's loss may raise anything
        return f"the loss raised {said(error)}"
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        return "the loss gave no single number: loss(outputs, targets) -> scalar tensor"
    if not bool(torch.isfinite(loss)):
        return f"the loss is {float(loss.detach())}"
    return None if loss.requires_grad else "the loss has no gradient (it was made of argmax, comparisons or detached tensors)"
