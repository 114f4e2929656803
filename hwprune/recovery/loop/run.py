"""The training loop: one for fine-tuning, distillation and everything that decides on masks while it trains."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import fx

from hwprune.errors import CandidateFailure, WorkloadError
from hwprune.records.measurement import Measurement
from hwprune.recovery.loop.checkpoint import Checkpoint, restore_optimizer, restore_random
from hwprune.recovery.loop.interrupts import Interrupts
from hwprune.recovery.loop.losses import STAGE, Losses
from hwprune.recovery.loop.outcome import Outcome
from hwprune.recovery.loop.rate_search import find_rate
from hwprune.recovery.loop.resuming import Resuming, digest
from hwprune.recovery.loop.stepping import Stepper
from hwprune.recovery.loop.train_batches import Batch, Batches
from hwprune.recovery.loop.training import NotFinite, Training, TrainingState
from hwprune.recovery.loop.validation import Validator
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.base import FixedMask, Sparsifier
from hwprune.workload.workload import Workload

RESTARTS = 2
"""The number of times that training begins anew, with a quarter of the rate, after the loss or the gradient was not finite."""
Report = Callable[[int, int, float, Measurement], None]
"""(steps done, all steps, seconds left, best validation so far)."""


def train(
    module: fx.GraphModule,
    workload: Workload,
    plan: Plan,
    *,
    sparsifier: Sparsifier | None = None,
    teacher: fx.GraphModule | None = None,
    taps: Sequence[str] = (),
    validator: Validator | None = None,
    keep_best: bool = True,
    folder: Path | None = None,
    report: Report | None = None,
    keep_checkpoint: bool = False,
    until: float = 1.0,
) -> Outcome:
    """Train ``module`` in place; afterwards it has its best weights and is in eval mode.

    Args:
        module: a traced model, cut or not; in eval mode it is what is deployed.
        sparsifier: holds or moves masks meanwhile.
        teacher: the dense model; needed where the plan is taught by one.
        taps: nodes whose outputs are compared with the teacher's (`Plan.features`).
        keep_best: False: the last weights count, because sparsity rises meanwhile and early ones are no candidates.
        folder: where a checkpoint is kept while it runs; a run that was killed goes on from it, if it is the same in everything:
            weights at the start, masks, teacher, plan. Ctrl-C then waits for the end of a step and saves it (twice: at once).
        keep_checkpoint: leave the last one there; training anew then ends at once.
        until: share of the steps after which it ends, as the whole run would be at that moment.

    Raises:
        CandidateFailure: (stage ``recover``) the loss raises or is not finite however small the rate, or nothing can be trained.
        WorkloadError: the train split can't be used.
    """
    if plan.taught and teacher is None:
        raise ValueError(f"{plan.text()} needs a teacher")
    training, started = Training(module, workload, plan, sparsifier, teacher, taps), time.monotonic()
    with training.placed():
        validator = validator or Validator(workload)
        if teacher is not None and validator.dense is None:
            validator.teach(teacher)
        with _prepare(training) as loss:
            run = _Run(training, loss, validator, keep_best=keep_best, report=report, until=until)
            ended, resuming = run.go(folder, keep_checkpoint=keep_checkpoint, started=started)
        state = run.state
        if keep_best:
            training.load(state.best)
        module.eval()
        if isinstance(sparsifier, FixedMask):
            sparsifier.check(module)
        resuming.finish()
        return Outcome(
            run.before, state.after, state.step, state.examples, resuming.seconds, state.rate, state.best_step, ended,
            state.restarts, tuple(state.history),
        )  # fmt: skip


def search_rate(
    module: fx.GraphModule, workload: Workload, plan: Plan, held: FixedMask | None = None, teacher: fx.GraphModule | None = None
) -> float:
    """The learning rate that `train` would find for these weights, which are left as they are."""
    training = Training(module, workload, plan, held, teacher)
    with training.placed(), _prepare(training) as loss:
        nothing = Measurement(0.0, "", 0.0, 0.0, 1)  # nothing is validated in the search for a rate
        stepper = Stepper(training, TrainingState(nothing, {}), Batches(workload, plan.seed), loss)
        return find_rate(stepper, {})


@contextlib.contextmanager
def _prepare(training: Training) -> Iterator[Losses]:
    """Hold the masks and set up the loss, with batch norms and taps as wanted; random numbers of others are left alone."""
    device, sparsifier = training.device, training.sparsifier
    if sparsifier is not None:
        sparsifier.to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(training.plan.seed)
        if isinstance(sparsifier, FixedMask):
            sparsifier.hold(training.module)
        yield Losses(training.module, training.workload, training.plan, device, sparsifier, training.teacher, training.taps)


class _Run:
    """One training from its first step, or a checkpoint, to its last one.

    Attributes:
        before: the metric on validation before any step.
    """

    def __init__(
        self, training: Training, loss: Losses, validator: Validator, *, keep_best: bool, report: Report | None, until: float
    ) -> None:
        self.training, self.validator, self.keep_best, self.report, self.until = training, validator, keep_best, report, until
        self.before = validator(training.module)
        self.state = TrainingState(self.before, training.weights())
        self.stepper = Stepper(training, self.state, Batches(training.workload, training.plan.seed), loss)

    def go(self, folder: Path | None, *, keep_checkpoint: bool, started: float) -> tuple[str, Resuming]:
        """Train, and return why it ended. Training begins anew with a smaller rate where numbers are no longer finite."""
        training, state = self.training, self.state
        start, sparsifier_state = state.best, training.sparsifier_state()
        identity = digest(training, start, self.until) if folder is not None else ""
        resuming = Resuming(training, state, folder, keep=keep_checkpoint, start=identity, started=started)
        resume = resuming.read()
        if resume is None:
            state.rate = find_rate(self.stepper, sparsifier_state)
        while True:
            try:
                with Interrupts(wanted=folder is not None) as interrupts:
                    return self._train_epochs(resume, resuming, interrupts), resuming
            except NotFinite as problem:
                if state.restarts == RESTARTS:
                    raise CandidateFailure(
                        STAGE,
                        f"{problem} at step {state.step + 1} with a learning rate of {state.rate:g}, and with larger ones before",
                    ) from None
                state.restarts += 1
                state.rate /= 4
                state.begin_anew(self.before, start)
                training.load(start)
                training.restore_sparsifier(sparsifier_state)
                resume = None

    def _train_epochs(self, resume: Checkpoint | None, resuming: Resuming, interrupts: Interrupts) -> str:
        plan, state, stepper = self.training.plan, self.state, self.stepper
        optimizer = stepper.optimizer()
        if resume is not None:
            restore_optimizer(optimizer, resume.tensors.get("optimizer", {}))
        batches = stepper.batches.count()
        a_epoch, total = stepper.steps()
        end = max(1, round(total * self.until))
        every = max(1, a_epoch // plan.checks)
        if state.step >= end or (plan.patience and state.stale >= plan.patience):
            return "it had ended"
        for epoch in itertools.count(state.step // a_epoch):
            skip, begun = state.step % a_epoch * plan.accumulate, state.step
            group: list[Batch] = []
            for number, item in enumerate(self._batches(epoch, skip), skip):
                group.append(item)
                if len(group) < plan.accumulate and number + 1 < batches:
                    continue
                stepper.step(group, optimizer, total)
                group = []
                last = state.step == end
                if state.step % every == 0 or last:
                    self._validate()
                    if self.report is not None:
                        self.report(state.step, total, resuming.seconds / state.step * (total - state.step), state.after)
                    if plan.patience and state.stale >= plan.patience:
                        resuming.save(optimizer, last=True)
                        return f"no better validation in {plan.patience} checks"
                if last:
                    resuming.save(optimizer, last=True)
                    return "all epochs"
                resuming.save(optimizer, now=interrupts.asked)
                if interrupts.asked:
                    raise KeyboardInterrupt
            if state.step == begun:
                name = self.training.workload.name
                raise WorkloadError(f"the train loader of workload {name!r} has fewer batches than its len() says")
        raise AssertionError("the loop above only returns")

    def _batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        """Batches of an epoch without the first ``skip``, with the random numbers that they had in an unbroken training."""
        state, batches = self.state, self.stepper.batches
        batches.begin(epoch)
        items = iter(batches.of(epoch))
        for _ in itertools.islice(items, skip):
            pass
        if state.rng is not None and skip:
            restore_random(state.rng)  # as after the last batch before the checkpoint; a new epoch has its own
        state.rng = None
        yield from items

    def _validate(self) -> None:
        """Score the weights as they would be run, or their average; keep them if they are the best so far."""
        training, state = self.training, self.state
        averaged = None
        if state.mean:
            averaged = training.weights()
            training.load(state.mean, partly=True)
        try:
            with training.as_run():
                metric = self.validator(training.module)
        except CandidateFailure as failure:
            raise NotFinite(failure.reason) from failure
        loss = sum(state.losses) / max(1, len(state.losses))
        state.losses.clear()
        state.history.append({"step": state.step, "loss": loss, "metric": metric.value})
        state.stale += 1
        if not self.keep_best or self.validator.better(metric.value, state.after.value):
            state.after, state.best_step, state.stale = metric, state.step, 0
            if self.keep_best:
                state.best = training.weights()
        if averaged is not None:
            training.load(averaged)
