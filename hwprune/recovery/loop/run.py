"""The training loop: one for fine-tuning, distillation and everything that decides on masks while it trains."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import fx

from hwprune.common.files import Table
from hwprune.errors import CandidateFailure, WorkloadError
from hwprune.records.measurement import Measurement
from hwprune.recovery.loop import rates
from hwprune.recovery.loop.checkpoint import FILE, Checkpoint, optimizer_tensors, restore_optimizer, restore_random
from hwprune.recovery.loop.interrupts import Interrupts
from hwprune.recovery.loop.losses import STAGE, Losses, said
from hwprune.recovery.loop.optimizer import optimizer_of, set_rate
from hwprune.recovery.loop.outcome import Outcome
from hwprune.recovery.loop.rate_search import HELD_BACK, LONGER, LONGEST_SHARE, TRIED_FROM, TRIED_LEAST, TRIED_MOST, TRIED_SHARE
from hwprune.recovery.loop.train_batches import Batch, Batches
from hwprune.recovery.loop.validation import Validator, device_of
from hwprune.recovery.plan import Plan, default_rate
from hwprune.recovery.sparsifiers.base import FixedMask, Sparsifier, State
from hwprune.workload.workload import Workload

RESTARTS = 2
"""How often training begins anew, with a quarter of the rate, after the loss or the gradient was not finite."""
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
    run = _Run(module, workload, plan, sparsifier, teacher, taps, validator, keep_best, folder, report, keep_checkpoint, until)
    return run.go()


def search_rate(
    module: fx.GraphModule, workload: Workload, plan: Plan, held: FixedMask | None = None, teacher: fx.GraphModule | None = None
) -> float:
    """The learning rate that `train` would find for these weights, which are left as they are."""
    run = _Run(module, workload, plan, held, teacher)
    with run.placed(), run._ready():
        return run.search_rate()


@dataclass(slots=True)
class _Run:
    module: fx.GraphModule
    workload: Workload
    plan: Plan
    sparsifier: Sparsifier | None = None
    teacher: fx.GraphModule | None = None
    taps: Sequence[str] = ()
    validator: Validator | None = None
    keep_best: bool = True
    folder: Path | None = None
    report: Report | None = None
    keep_checkpoint: bool = False
    until: float = 1.0
    batches: Batches = field(init=False)
    device: torch.device = field(init=False)
    loss: Losses = field(init=False)
    origin: str = field(init=False, default="")
    """Of what this run starts from: a checkpoint of anything else is none of ours."""
    rate: float = field(init=False, default=0.0)
    step: int = field(init=False, default=0)
    examples: int = field(init=False, default=0)
    restarts: int = field(init=False, default=0)
    best_step: int = field(init=False, default=0)
    stale: int = field(init=False, default=0)
    spent: float = field(init=False, default=0.0)
    history: list[dict[str, float]] = field(init=False, default_factory=list)
    best: dict[str, torch.Tensor] = field(init=False, default_factory=dict)
    mean: dict[str, torch.Tensor] = field(init=False, default_factory=dict)
    losses: list[float] = field(init=False, default_factory=list)
    _before: Measurement = field(init=False)
    _after: Measurement = field(init=False)
    _rng: dict[str, torch.Tensor] | None = field(init=False, default=None)
    _own: State = field(init=False, default_factory=dict)
    _saved: float = field(init=False, default=0.0)
    _started: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.batches = Batches(self.workload, self.plan.seed)

    def go(self) -> Outcome:
        plan = self.plan
        if plan.taught and self.teacher is None:
            raise ValueError(f"{plan.text()} needs a teacher")
        self._started = self._saved = time.monotonic()
        with self.placed():
            return self._go()

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """Models on the device that trains. The teacher is the user's own: it must not stay where it was moved."""
        homes = [(one, device_of(one)) for one in (self.module, self.teacher) if one is not None]
        self.device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        try:
            for one, _ in homes:
                one.to(self.device).eval()
            yield
        finally:
            for one, home in homes:
                one.to(home)

    def _go(self) -> Outcome:
        validator = self.validator or Validator(self.workload)
        if self.teacher is not None and validator.dense is None:
            validator.teach(self.teacher)
        with self._ready():
            self._before = self._after = validator(self.module)
            self.best = self._copy()
            self._own = self.sparsifier.state() if self.sparsifier is not None else {}
            ended = self._all(validator)
        if self.keep_best:
            self._load(self.best)
        self.module.eval()
        if isinstance(self.sparsifier, FixedMask):
            self.sparsifier.check(self.module)
        if self.folder is not None and not self.keep_checkpoint:
            (self.folder / FILE).unlink(missing_ok=True)
        return Outcome(
            self._before, self._after, self.step, self.examples, self.spent + time.monotonic() - self._started, self.rate,
            self.best_step, ended, self.restarts, tuple(self.history),
        )  # fmt: skip

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """Masks held, batch norms as wanted, taps in place; random numbers of others are left alone."""
        if self.sparsifier is not None:
            self.sparsifier.to(self.device)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.plan.seed)
            if isinstance(self.sparsifier, FixedMask):
                self.sparsifier.hold(self.module)
            self.loss = Losses(self.module, self.workload, self.plan, self.device, self.sparsifier, self.teacher, self.taps)
            yield

    # -- the learning rate ---------------------------------------------------------------------

    def search_rate(self) -> float:
        """The plan's rate, or the best of short trials; without them where the training is short itself.

        Where sparsity rises, all of it comes with the first step of a trial: what counts is how fast a model learns that has lost
        what this one will. A larger rate must then bring clearly more (see `rates.MARGIN_RISING`).
        """
        plan = self.plan
        first = plan.rate or default_rate(plan, self.loss.normed)
        total = self._steps()[1]
        if plan.rate is not None or total < TRIED_FROM:
            return first
        steps = min(max(round(TRIED_SHARE * total), TRIED_LEAST), TRIED_MOST)
        rising = self.sparsifier is not None and not isinstance(self.sparsifier, FixedMask)
        if self.sparsifier is not None and rising:
            self.sparsifier.short_trial = True
        start = self._copy()
        best = partial(rates.best, margin=rates.MARGIN_RISING if rising else rates.MARGIN)

        def loss_of(rate: float) -> float:
            self._load(start)
            if self.sparsifier is not None:
                self.sparsifier.restore(self._own)
            self.rate, self.step = rate, 0
            optimizer = self._optimizer()
            self.batches.begin(0)
            items = itertools.chain.from_iterable(map(self.batches.of, itertools.count()))
            try:
                for _ in range(steps):
                    self._update(list(itertools.islice(items, plan.accumulate)), optimizer, steps, at_once=rising)
                self.loss.train(False)
                with torch.no_grad():
                    found = torch.stack([self.loss(*item) for item in itertools.islice(items, HELD_BACK)])
            except _NotFinite:
                return math.inf
            return float(found.mean()) if bool(torch.isfinite(found).all()) else math.inf

        try:
            found = best(loss_of, first)
            longer = min(LONGER * steps, round(LONGEST_SHARE * total))
            if found.little and longer > steps:
                steps = longer
                # From there upwards, and from the first rate: what a few steps prefer may be too much for many.
                found = max((best(loss_of, rate) for rate in dict.fromkeys((found.rate, first))), key=lambda one: one.share)
            return found.rate
        finally:
            self._load(start)
            if self.sparsifier is not None:
                self.sparsifier.short_trial = False
                self.sparsifier.restore(self._own)
            self.step = 0
            self.losses.clear()
            self.mean.clear()

    def _steps(self) -> tuple[int, int]:
        """Of the optimizer: (an epoch, all)."""
        a_epoch = math.ceil(self.batches.count() / self.plan.accumulate)
        return a_epoch, max(1, round(self.plan.epochs * a_epoch))

    # -- the loop ------------------------------------------------------------------------------

    def _all(self, validator: Validator) -> str:
        """Train; why it ended. Begins anew with a smaller rate where numbers are no longer finite."""
        start = self.best
        if self.folder is not None:
            self.origin = self._digest()
        resume = self._read()
        if resume is None:
            self.rate = self.search_rate()
        while True:
            try:
                with Interrupts(self.folder is not None) as interrupts:
                    return self._epochs(validator, resume, interrupts)
            except _NotFinite as problem:
                if self.restarts == RESTARTS:
                    raise CandidateFailure(
                        STAGE,
                        f"{problem} at step {self.step + 1} with a learning rate of {self.rate:g}, and with larger ones before",
                    ) from None
                self.restarts += 1
                self.rate /= 4
                self.step = self.best_step = self.stale = 0
                self.history.clear()
                self.losses.clear()
                self.mean.clear()
                self.best, self._after = start, self._before
                self._load(start)
                if self.sparsifier is not None:
                    self.sparsifier.restore(self._own)
                self._rng = resume = None

    def _epochs(self, validator: Validator, resume: Checkpoint | None, interrupts: Interrupts) -> str:
        plan = self.plan
        optimizer = self._optimizer()
        if resume is not None:
            restore_optimizer(optimizer, resume.tensors.get("optimizer", {}))
        batches = self.batches.count()
        a_epoch, total = self._steps()
        end = max(1, round(total * self.until))
        every = max(1, a_epoch // plan.checks)
        if self.step >= end or (plan.patience and self.stale >= plan.patience):
            return "it had ended"
        for epoch in itertools.count(self.step // a_epoch):
            skip, begun = self.step % a_epoch * plan.accumulate, self.step
            self.batches.begin(epoch)
            group: list[Batch] = []
            items = iter(self.batches.of(epoch))
            for _ in itertools.islice(items, skip):
                pass
            if self._rng is not None and skip:
                restore_random(self._rng)  # as after the last batch before the checkpoint; a new epoch has its own
            self._rng = None
            for number, item in enumerate(items, skip):
                group.append(item)
                if len(group) < plan.accumulate and number + 1 < batches:
                    continue
                self._update(group, optimizer, total)
                group = []
                last = self.step == end
                if self.step % every == 0 or last:
                    self._check(validator)
                    self._tell(total)
                    if plan.patience and self.stale >= plan.patience:
                        self._keep(optimizer, last=True)
                        return f"no better validation in {plan.patience} checks"
                if last:
                    self._keep(optimizer, last=True)
                    return "all epochs"
                self._keep(optimizer, now=interrupts.asked)
                if interrupts.asked:
                    raise KeyboardInterrupt
            if self.step == begun:
                raise WorkloadError(f"the train loader of workload {self.workload.name!r} has fewer batches than its len() says")
        raise AssertionError("the loop above only returns")

    def _tell(self, total: int) -> None:
        if self.report is not None:
            done = time.monotonic() - self._started + self.spent
            self.report(self.step, total, done / self.step * (total - self.step), self._after)

    def _update(
        self,
        group: Sequence[Batch],
        optimizer: torch.optim.Optimizer,
        total: int,
        at_once: bool = False,
    ) -> None:
        """One step of the optimizer over a few batches; sparsity follows the schedule, or is all there at once."""
        plan = self.plan
        self.loss.train()
        optimizer.zero_grad(set_to_none=True)
        for inputs, targets in group:
            loss = self.loss(inputs, targets) / len(group)
            if not bool(torch.isfinite(loss)):
                raise _NotFinite("the loss is not finite")
            try:
                loss.backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:  # a loss without a gradient, or no memory left
                raise CandidateFailure(STAGE, f"the backward pass raised {said(error)}") from error
            self.losses.append(float(loss.detach()) * len(group))
            self.examples += len(inputs[0])
        if self.sparsifier is not None:
            self.sparsifier.before_step(self.module)
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, plan.clip or math.inf)
        if not bool(torch.isfinite(norm)):
            raise _NotFinite("the gradient is not finite")
        progress = 1.0 if at_once else min(1.0, (self.step + 1) / total)
        set_rate(optimizer, self.rate, (self.step + 0.5) / total, plan.warmup)
        optimizer.step()
        self.step += 1
        if self.sparsifier is not None:
            self.sparsifier.after_step(self.module, optimizer, progress)
        self._average()

    def _check(self, validator: Validator) -> None:
        averaged = None
        if self.mean:
            averaged = self._copy()
            self._load(self.mean, partly=True)
        try:
            with self._as_run():
                found = validator(self.module)
        except CandidateFailure as failure:
            raise _NotFinite(failure.reason) from failure
        loss = sum(self.losses) / max(1, len(self.losses))
        self.losses.clear()
        self.history.append({"step": self.step, "loss": loss, "metric": found.value})
        self.stale += 1
        if not self.keep_best or validator.better(found.value, self._after.value):
            self._after, self.best_step, self.stale = found, self.step, 0
            if self.keep_best:
                self.best = self._copy()
        if averaged is not None:
            self._load(averaged)

    @contextlib.contextmanager
    def _as_run(self) -> Iterator[None]:
        """The module with what it is run with meanwhile, where masks act in the forward pass alone."""
        self.module.eval()
        with torch.no_grad():
            taken = dict(self.sparsifier.weights(self.module)) if self.sparsifier is not None else {}
            parameters = dict(self.module.named_parameters())
            kept = {name: parameters[name].detach().clone() for name in taken}
            for name, value in taken.items():
                parameters[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)

    # -- pieces ----------------------------------------------------------------------------------

    def _optimizer(self) -> torch.optim.Optimizer:
        return optimizer_of(self.module, self.plan, self.rate, self._steps()[1], self._frozen(), self.sparsifier)

    def _average(self) -> None:
        if not self.plan.average:
            return
        held = self.sparsifier.masks if isinstance(self.sparsifier, FixedMask) else {}
        for name, parameter in self.module.named_parameters():
            value = parameter.detach()
            if name not in self.mean:
                self.mean[name] = value.clone()
            self.mean[name].lerp_(value, 1 - self.plan.average)
            if name in held:
                self.mean[name].masked_fill_(~held[name], 0.0)

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def _load(self, state: Mapping[str, torch.Tensor], partly: bool = False) -> None:
        self.module.load_state_dict(dict(state), strict=not partly)

    # -- on disk ---------------------------------------------------------------------------------

    def _digest(self) -> str:
        """Of all that decides how this run goes."""
        found = hashlib.sha256()
        held = self.sparsifier.masks if isinstance(self.sparsifier, FixedMask) else {}
        own = self._own if not held else {}
        teacher = self.teacher.state_dict() if self.teacher is not None else {}
        for group in (self.best, held, own, teacher):
            for name in sorted(group):
                found.update(name.encode())
                found.update(group[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        found.update(f"{type(self.sparsifier).__name__} {sorted(self._frozen())} {list(self.taps)} {self.until}".encode())
        return found.hexdigest()

    def _frozen(self) -> set[str]:
        return {name for name, p in self.workload.model.named_parameters() if not p.requires_grad}

    def _keep(self, optimizer: torch.optim.Optimizer, last: bool = False, now: bool = False) -> None:
        """Write a checkpoint if it is time. A full disk ends no training: there is only nothing to go on from."""
        if self.folder is None or (last and not self.keep_checkpoint):
            return
        if not (last or now) and time.monotonic() - self._saved < self.plan.checkpoint_s:
            return
        self._saved = time.monotonic()
        facts = {
            "plan": self.plan.to_json(), "origin": self.origin, "step": self.step, "examples": self.examples, "rate": self.rate,
            "restarts": self.restarts, "best_step": self.best_step, "stale": self.stale, "history": self.history,
            "after": self._after.to_json(), "spent": self.spent + time.monotonic() - self._started, "losses": self.losses,
        }  # fmt: skip
        tensors: dict[str, dict[str, torch.Tensor]] = {
            "weights": self._copy(), "best": self.best, "optimizer": optimizer_tensors(optimizer), "mean": self.mean,
            "own": self.sparsifier.state() if self.sparsifier is not None else {},
        }  # fmt: skip
        try:
            Checkpoint(facts, tensors).write(self.folder / FILE)
        except OSError as error:
            warnings.warn(f"no checkpoint of the training could be written to {self.folder}: {said(error)}", stacklevel=2)

    def _read(self) -> Checkpoint | None:
        """Go on from a checkpoint of this very run, if there is one. Nothing is changed before all of it is understood."""
        known = Checkpoint.read(self.folder / FILE) if self.folder is not None else None
        if known is None or known.facts.get("plan") != self.plan.to_json() or known.facts.get("origin") != self.origin:
            return None
        names = ("step", "examples", "rate", "restarts", "best_step", "stale", "spent")
        try:
            facts = {name: known.facts[name] for name in names}
            history, losses = list(known.facts["history"]), list(known.facts["losses"])
            after = Measurement.from_table(Table(known.facts["after"], "checkpoint"))
            weights, best, rng = known.tensors["weights"], known.tensors["best"], known.tensors["rng"]
        except (KeyError, TypeError):
            return None
        self._load(weights)
        self.best = {name: tensor.to(self.device) for name, tensor in best.items()}
        self.mean = {name: tensor.to(self.device) for name, tensor in known.tensors.get("mean", {}).items()}
        if self.sparsifier is not None:
            self.sparsifier.restore(known.tensors.get("own", {}))
        for name, value in facts.items():
            setattr(self, name, value)
        self.history, self.losses, self._after, self._rng = history, losses, after, rng
        return known


class _NotFinite(Exception):  # noqa: N818 - it leads to another try
    """Numbers have left the range of floating point."""
