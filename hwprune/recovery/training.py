"""The training loop: one for fine-tuning, distillation and everything that decides on masks while it trains."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from hwprune import evaluate
from hwprune.errors import CandidateFailure, WorkloadError
from hwprune.measurement import Measurement
from hwprune.metrics import class_axis
from hwprune.recovery import distillation, rates
from hwprune.recovery.checkpoint import FILE, Checkpoint, optimizer_tensors, restore_optimizer
from hwprune.recovery.masking import Held, Sparsifier
from hwprune.recovery.plan import Plan, default_rate
from hwprune.workload import Workload, first_tensor

STAGE = "recover"
"""Stage of a `CandidateFailure` in training."""
ENOUGH = 16
"""Examples in a batch whose statistics a batch norm may follow."""
TRIED_FROM = 40
"""Steps from which on a learning rate is searched for."""
TRIED_SHARE, TRIED_LEAST, TRIED_MOST = 0.03, 8, 40
"""Steps of one trial of a learning rate: share of all, and its bounds."""
HELD_BACK = 4
"""Batches that such a trial is judged by."""
RESTARTS = 2
"""How often training begins anew, with a quarter of the rate, after the loss or the gradient was not finite."""
_BATCH_NORM = torch.ops.aten.batch_norm.default

Report = Callable[[int, int, float, Measurement], None]
"""(steps done, all steps, seconds left, best validation so far)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What training did. The module holds the best weights that validation saw, those before training included.

    Attributes:
        before, after: the metric on the validation split.
        steps, examples, seconds: what it cost; a run that was resumed counts all of it.
        best_step: 0: training has brought nothing, the weights are as before.
        ended: why no more steps were made.
        history: a row each validation: step, loss (mean since the last one), metric.
    """

    before: Measurement
    after: Measurement
    steps: int
    examples: int
    seconds: float
    rate: float
    best_step: int
    ended: str
    restarts: int = 0
    history: tuple[Mapping[str, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "before": self.before.to_json(), "after": self.after.to_json(), "history": list(self.history)}


@dataclass(slots=True)
class Judge:
    """Scores a module in PyTorch on the validation split."""

    workload: Workload
    dense: list[tuple[torch.Tensor, ...]] | None = None

    def __call__(self, module: nn.Module) -> Measurement:
        """The metric. Raises `CandidateFailure` (stage ``evaluate``) if outputs are not finite."""
        outputs, targets = self._outputs(module)
        return evaluate.score(self.workload.scoring, outputs, targets, self.dense)

    def teach(self, teacher: nn.Module) -> None:
        """The dense model's outputs, for metrics that compare with them."""
        if self.workload.scoring.agreement:
            self.dense, _ = self._outputs(teacher)

    def better(self, value: float, than: float) -> bool:
        return self.workload.scoring.drop(than, value) < 0

    @torch.no_grad()
    def _outputs(self, module: nn.Module) -> tuple[list[tuple[torch.Tensor, ...]], list[Any]]:
        device = device_of(module)
        module.eval()
        outputs, targets = [], []
        for inputs, target in self.workload.batches("validation"):
            leaves = torch.utils._pytree.tree_leaves(module(*(x.to(device) for x in inputs)))
            outputs.append(tuple(leaf.cpu() for leaf in leaves if isinstance(leaf, torch.Tensor)))
            targets.append(target)
        return outputs, targets


def train(
    module: fx.GraphModule,
    workload: Workload,
    plan: Plan,
    *,
    sparsifier: Sparsifier | None = None,
    teacher: fx.GraphModule | None = None,
    taps: Sequence[str] = (),
    judge: Judge | None = None,
    keep_best: bool = True,
    folder: Path | None = None,
    report: Report | None = None,
    until: float = 1.0,
) -> Outcome:
    """Train ``module`` in place; afterwards it has its best weights and is in eval mode.

    Args:
        module: a traced model, cut or not; in eval mode it is what is deployed.
        sparsifier: holds or moves masks meanwhile.
        teacher: the dense model; needed where the plan is taught by one.
        taps: nodes whose outputs are compared with the teacher's (`Plan.features`).
        keep_best: False: the last weights count, because sparsity rises meanwhile and early ones are no candidates.
        folder: where a checkpoint is kept while it runs; a run that was killed goes on from it.
        until: share of the steps after which it ends, as the whole run would be at that moment.

    Raises:
        CandidateFailure: (stage ``recover``) the loss raises or is not finite however small the rate, or nothing can be trained.
        WorkloadError: the train split can't be used.
    """
    return _Run(module, workload, plan, sparsifier, teacher, taps, judge, keep_best, folder, report, until).go()


def search_rate(
    module: fx.GraphModule, workload: Workload, plan: Plan, held: Held | None = None, teacher: fx.GraphModule | None = None
) -> float:
    """The learning rate that `train` would find for these weights, which are left as they are."""
    run = _Run(module, workload, plan, held, teacher, (), None, True, None, None)
    with run.placed(), run._ready():
        return run.search_rate()


@dataclass(slots=True)
class _Run:
    module: fx.GraphModule
    workload: Workload
    plan: Plan
    sparsifier: Sparsifier | None
    teacher: fx.GraphModule | None
    taps: Sequence[str]
    judge: Judge | None
    keep_best: bool
    folder: Path | None
    report: Report | None
    until: float = 1.0
    device: torch.device = field(init=False)
    student: nn.Module | None = field(init=False, default=None)
    """The module, and the teacher, with inner outputs beside the answer, where these are compared."""
    master: nn.Module | None = field(init=False, default=None)
    rate: float = field(init=False, default=0.0)
    step: int = field(init=False, default=0)
    batch: int = field(init=False, default=0)
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
    _rng: torch.Tensor | None = field(init=False, default=None)
    _saved: float = field(init=False, default=0.0)
    _started: float = field(init=False, default=0.0)

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
        judge = self.judge or Judge(self.workload)
        if self.teacher is not None and judge.dense is None:
            judge.teach(self.teacher)
        with self._ready():
            self._before = self._after = judge(self.module)
            self.best = self._copy()
            ended = self._all(judge)
        if self.keep_best:
            self._load(self.best)
        self.module.eval()
        if isinstance(self.sparsifier, Held):
            self.sparsifier.check(self.module)
        if self.folder is not None:
            (self.folder / FILE).unlink(missing_ok=True)
        return Outcome(
            self._before, self._after, self.step, self.examples, self.spent + time.monotonic() - self._started, self.rate,
            self.best_step, ended, self.restarts, tuple(self.history),
        )  # fmt: skip

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """Masks held, batch norms as wanted, taps in place; random numbers of others are left alone."""
        if isinstance(self.sparsifier, Held):
            self.sparsifier = self.sparsifier.to(self.device)
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            _norms(self.module, self._norm_kind()),
        ):
            if isinstance(self.sparsifier, Held):
                self.sparsifier.hold(self.module)
            if self.taps and self.plan.features > 0 and self.teacher is not None:
                self.student = distillation.tapped(self.module, self.taps)
                self.master = distillation.tapped(self.teacher, self.taps).eval()
            yield

    # -- the learning rate ---------------------------------------------------------------------

    def search_rate(self) -> float:
        """The plan's rate, or the best of short trials; without them where masks move, or the training is short itself."""
        plan = self.plan
        normed = any(node.target is _BATCH_NORM for node in self.module.graph.nodes)
        first = plan.rate or default_rate(plan, normed)
        total = self._steps()[1]
        if plan.rate is not None or total < TRIED_FROM or not (self.sparsifier is None or isinstance(self.sparsifier, Held)):
            return first
        steps = min(max(round(TRIED_SHARE * total), TRIED_LEAST), TRIED_MOST)
        torch.manual_seed(plan.seed)
        needed = steps * plan.accumulate
        items = list(itertools.islice(itertools.chain.from_iterable(map(self._order, itertools.count())), needed + HELD_BACK))
        start = self._copy()

        def loss_of(rate: float) -> float:
            self._load(start)
            self.rate, self.step = rate, 0
            optimizer = self._optimizer()
            torch.manual_seed(plan.seed)
            try:
                for place in range(0, needed, plan.accumulate):
                    self._update(items[place : place + plan.accumulate], optimizer, steps)
                self.module.eval()
                with torch.no_grad():
                    found = torch.stack([self._loss(inputs, targets) for inputs, targets in items[needed:]])
            except _NotFinite:
                return math.inf
            return float(found.mean()) if bool(torch.isfinite(found).all()) else math.inf

        try:
            return rates.best(loss_of, first)
        finally:
            self._load(start)
            self.step = 0
            self.losses.clear()
            self.mean.clear()

    def _steps(self) -> tuple[int, int]:
        """Of the optimizer: (an epoch, all)."""
        a_epoch = math.ceil(self._count() / self.plan.accumulate)
        return a_epoch, max(1, round(self.plan.epochs * a_epoch))

    # -- the loop ------------------------------------------------------------------------------

    def _all(self, judge: Judge) -> str:
        """Train; why it ended. Begins anew with a smaller rate where numbers are no longer finite."""
        start = self.best
        resume = self._read()
        if resume is None:
            self.rate = self.search_rate()
        while True:
            try:
                return self._epochs(judge, resume)
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
                self.mean.clear()
                self.best, self._after = start, self._before
                self._load(start)
                resume = None

    def _epochs(self, judge: Judge, resume: Checkpoint | None) -> str:
        plan = self.plan
        optimizer = self._optimizer()
        if resume is not None:
            restore_optimizer(optimizer, resume.tensors.get("optimizer", {}))
        batches = self._count()
        a_epoch, total = self._steps()
        end = max(1, round(total * self.until))
        every = max(1, a_epoch // plan.checks)
        for epoch in itertools.count(self.step // a_epoch):
            skip, begun = self.step % a_epoch * plan.accumulate, self.step
            torch.manual_seed(plan.seed * 100_003 + epoch)
            group: list[tuple[tuple[torch.Tensor, ...], Any]] = []
            for number, item in enumerate(self._order(epoch)):
                if number < skip:
                    continue
                group.append(item)
                if len(group) < plan.accumulate and number + 1 < batches:
                    continue
                if self._rng is not None:  # after what a resumed epoch has skipped
                    torch.set_rng_state(self._rng)
                    self._rng = None
                self._update(group, optimizer, total)
                group = []
                last = self.step == end
                if self.step % every == 0 or last:
                    self._check(judge)
                    if self.report is not None:
                        done = time.monotonic() - self._started + self.spent
                        self.report(self.step, total, done / self.step * (total - self.step), self._after)
                    if plan.patience and self.stale >= plan.patience:
                        return f"no better validation in {plan.patience} checks"
                if last:
                    return "all epochs"
                self._keep(optimizer)
            if self.step == begun:
                raise WorkloadError(f"the train loader of workload {self.workload.name!r} has fewer batches than its len() says")
        raise AssertionError("the loop above only returns")

    def _update(
        self, group: Sequence[tuple[tuple[torch.Tensor, ...], Any]], optimizer: torch.optim.Optimizer, total: int
    ) -> None:
        """One step of the optimizer over a few batches."""
        plan = self.plan
        self.module.train()
        if self.student is not None:
            self.student.train()
        optimizer.zero_grad(set_to_none=True)
        for inputs, targets in group:
            loss = self._loss(inputs, targets) / len(group)
            if not bool(torch.isfinite(loss)):
                raise _NotFinite("the loss is not finite")
            loss.backward()  # type: ignore[no-untyped-call]
            self.losses.append(float(loss.detach()) * len(group))
            self.examples += len(inputs[0])
        if self.sparsifier is not None:
            self.sparsifier.before_step(self.module)
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, plan.clip or math.inf)
        if not bool(torch.isfinite(norm)):
            raise _NotFinite("the gradient is not finite")
        progress = (self.step + 1) / total
        for g in optimizer.param_groups:
            g["lr"] = g["scale"] * self.rate * _shape(self.step / total, plan.warmup)
        optimizer.step()
        self.step += 1
        if self.sparsifier is not None:
            self.sparsifier.after_step(self.module, optimizer, progress)
        self._average()

    def _loss(self, inputs: tuple[torch.Tensor, ...], targets: Any) -> torch.Tensor:
        plan = self.plan
        inputs = tuple(x.to(self.device) for x in inputs)
        targets = targets.to(self.device) if isinstance(targets, torch.Tensor) else targets
        taken = dict(self.sparsifier.weights(self.module)) if self.sparsifier is not None else {}
        with self._precision():
            mine: tuple[torch.Tensor, ...] = ()
            runner = self.student or self.module
            result = torch.func.functional_call(runner, taken, inputs) if taken else runner(*inputs)
            if self.student is not None:
                result, mine = result
            found = first_tensor(result)
            parts = []
            if plan.task_weight > 0:
                parts.append(plan.task_weight * self._task(found, targets))
            if self.teacher is not None and plan.taught:
                with torch.no_grad():
                    answer = (self.master or self.teacher)(*inputs)
                if self.student is not None:
                    answer, inner = answer
                    parts.append(plan.features * distillation.features(mine, inner))
                wanted = first_tensor(answer)
                if plan.task_weight < 1:
                    axis = class_axis(self.workload.scoring, wanted.shape, targets)
                    parts.append((1 - plan.task_weight) * distillation.logits(found, wanted, axis, plan.temperature))
            penalty = self.sparsifier.penalty(self.module) if self.sparsifier is not None else None
            if penalty is not None:
                parts.append(penalty)
        return torch.stack([part.float() for part in parts]).sum()

    def _task(self, found: torch.Tensor, targets: Any) -> torch.Tensor:
        try:
            loss = self.workload.loss(found, targets)
        except Exception as error:  # the user's loss, or labels that it can't take
            first = (str(error).strip().splitlines() or [""])[0]
            raise CandidateFailure(STAGE, f"the loss raised {type(error).__name__}: {first}") from error
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise CandidateFailure(STAGE, "the loss must give one number: loss(outputs, targets) -> scalar tensor")
        return loss

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        wanted = self.plan.precision
        if wanted == "auto":
            wanted = "bf16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        if wanted == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _check(self, judge: Judge) -> None:
        averaged = None
        if self.mean:
            averaged = self._copy()
            self._load(self.mean, partly=True)
        try:
            found = judge(self.module)
        except CandidateFailure as failure:
            raise _NotFinite(failure.reason) from failure
        loss = sum(self.losses) / max(1, len(self.losses))
        self.losses.clear()
        self.history.append({"step": self.step, "loss": loss, "metric": found.value})
        self.stale += 1
        if not self.keep_best or judge.better(found.value, self._after.value):
            self._after, self.best_step, self.stale = found, self.step, 0
            if self.keep_best:
                self.best = self._copy()
        if averaged is not None:
            self._load(averaged)

    # -- pieces ----------------------------------------------------------------------------------

    def _optimizer(self) -> torch.optim.Optimizer:
        """Weights decay, biases and norms do not."""
        frozen = {name for name, p in self.workload.model.named_parameters() if not p.requires_grad}
        named = [(n, p) for n, p in self.module.named_parameters() if n not in frozen]
        extra = self.sparsifier.extra() if self.sparsifier is not None else []
        if not named and not extra:
            raise CandidateFailure(STAGE, "every parameter of the model is frozen (requires_grad=False): nothing can be trained")
        plan = self.plan
        groups = [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": plan.decay, "scale": 1.0},
            {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0, "scale": 1.0},
            {"params": extra, "weight_decay": 0.0, "scale": getattr(self.sparsifier, "rate_scale", 1.0)},
        ]
        groups = [group for group in groups if group["params"]]
        if plan.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.rate, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, lr=self.rate)

    def _norm_kind(self) -> str:
        if self.plan.norms != "auto":
            return self.plan.norms
        inputs, _ = next(self.workload.batches("train")) if self.workload.train is not None else ((), None)
        return "train" if inputs and len(inputs[0]) >= ENOUGH else "frozen"

    def _count(self) -> int:
        """Batches of an epoch."""
        loader: Any = self.workload.train
        if loader is None:
            raise WorkloadError(
                f"workload {self.workload.name!r} has no train data: recovery training needs hwprune.Workload(train=loader)"
            )
        with contextlib.suppress(TypeError):
            if count := len(loader):
                return int(count)
        return sum(1 for _ in self.workload.batches("train"))

    def _order(self, epoch: int) -> Iterator[tuple[tuple[torch.Tensor, ...], Any]]:
        """The batches of an epoch. A list of batches is shuffled; a loader does so itself, with the seed that was just set."""
        loader = self.workload.train
        if isinstance(loader, (list, tuple)):
            draw = torch.Generator().manual_seed(self.plan.seed * 100_003 + epoch)
            order = torch.randperm(len(loader), generator=draw).tolist()
            return replace(self.workload, train=[loader[place] for place in order]).batches("train")
        return self.workload.batches("train")

    def _average(self) -> None:
        if not self.plan.average:
            return
        held = self.sparsifier.masks if isinstance(self.sparsifier, Held) else {}
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

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        if self.folder is None or time.monotonic() - self._saved < self.plan.checkpoint_s:
            return
        facts = {
            "plan": self.plan.to_json(), "step": self.step, "examples": self.examples, "rate": self.rate,
            "restarts": self.restarts, "best_step": self.best_step, "stale": self.stale, "history": self.history,
            "after": self._after.to_json(), "spent": self.spent + time.monotonic() - self._started, "losses": self.losses,
        }  # fmt: skip
        scores = self.sparsifier.extra() if self.sparsifier is not None else []
        own: dict[str, torch.Tensor] = {str(place): score for place, score in enumerate(scores)}
        tensors: dict[str, dict[str, torch.Tensor]] = {
            "weights": self._copy(), "best": self.best, "optimizer": optimizer_tensors(optimizer), "mean": self.mean, "own": own,
        }  # fmt: skip
        Checkpoint(facts, tensors).write(self.folder / FILE)
        self._saved = time.monotonic()

    def _read(self) -> Checkpoint | None:
        """Go on from a checkpoint of the same plan, if there is one."""
        found = Checkpoint.read(self.folder / FILE) if self.folder is not None else None
        if found is None:
            return None
        known, rng = found
        same = {name: tuple(tensor.shape) for name, tensor in known.tensors.get("weights", {}).items()}
        if known.facts["plan"] != self.plan.to_json() or same != {n: tuple(t.shape) for n, t in self.best.items()}:
            return None
        from hwprune.files import Table

        facts = known.facts
        self._load(known.tensors["weights"])
        self.best = {name: tensor.to(self.device) for name, tensor in known.tensors["best"].items()}
        self.mean = {name: tensor.to(self.device) for name, tensor in known.tensors.get("mean", {}).items()}
        for place, parameter in enumerate(self.sparsifier.extra() if self.sparsifier is not None else ()):
            with torch.no_grad():
                parameter.copy_(known.tensors["own"][str(place)])
        for name in ("step", "examples", "rate", "restarts", "best_step", "stale", "spent"):
            setattr(self, name, facts[name])
        self.history, self.losses = list(facts["history"]), list(facts["losses"])
        self._after = Measurement.from_table(Table(facts["after"], "checkpoint"))
        self._rng = rng
        return known


class _NotFinite(Exception):  # noqa: N818 - it leads to another try
    """Numbers have left the range of floating point."""


def device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in itertools.chain(module.parameters(), module.buffers())), torch.device("cpu"))


def _shape(done: float, warmup: float) -> float:
    """The learning rate as a share of its highest: a line up, then a cosine down to a hundredth."""
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2


@contextlib.contextmanager
def _norms(module: fx.GraphModule, kind: str) -> Iterator[None]:
    """With ``frozen`` statistics of batch norms are constants, also in train mode."""
    nodes = [node for node in module.graph.nodes if node.target is _BATCH_NORM and node.args[3] is not None]
    before = [node.args for node in nodes]
    if kind == "frozen" and nodes:
        for node in nodes:
            node.args = (*node.args[:5], False, *node.args[6:])
        module.recompile()
    try:
        yield
    finally:
        for node, args in zip(nodes, before, strict=True):
            node.args = args
        module.recompile()
