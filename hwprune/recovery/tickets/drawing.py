"""Lottery tickets: iterative magnitude pruning with rewinding (Frankle & Carbin 2019, arXiv 1803.03635; Frankle et al. 2020,
arXiv 1912.05671 for rewinding to an early step).

Train, remove the smallest weights of all layers together, set what is left back to its value at the rewinding step, train again.
A ticket wins if it trains better than random ones with the same number of weights in each layer, from the same values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.records.measurement import Measurement
from hwprune.recovery.loop.run import train
from hwprune.recovery.loop.validation import Validator
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.base import FixedMask
from hwprune.recovery.tickets.course import Course, State, origin_of
from hwprune.recovery.tickets.masks import initial, pruned, random_like
from hwprune.recovery.tickets.ticket_plan import TicketPlan
from hwprune.recovery.tickets.ticket_result import Tickets, points_of
from hwprune.workload.workload import Workload

Tell = Callable[[int, int, str], None]
"""(trainings done, all trainings, what is trained next)."""


def draw(
    workload: Workload | Pruner,
    plan: TicketPlan,
    transfer: Workload | None = None,
    step: Tell | None = None,
    folder: Path | None = None,
) -> Tickets:
    """Find tickets and compare them with random ones; on ``transfer`` too, where one is given.

    Metrics are of the last weights of each training, on the test split (validation where there is none).

    Args:
        folder: where it is written after each round how far it has come; the same drawing goes on from there.

    Raises:
        UsageError: the model has no linear or convolution layer, the two workloads share no layer, or the folder holds the course
            of another drawing.
        CandidateFailure, WorkloadError: as `hwprune.recovery.loop.run.train`.
    """
    pruner = workload if isinstance(workload, Pruner) else Pruner(workload)
    other = Pruner(transfer) if transfer is not None else None
    names = [matrix.parameter for matrix in pruner.graph.matrices]
    if not names:
        raise UsageError(f"{pruner.workload.name} has no linear or convolution layer to prune")
    if other is not None and not _shared(pruner, other, names):
        raise UsageError(f"{pruner.workload.name} and {other.workload.name} share no layer: a ticket can't be transferred")
    drawing = _Drawing(pruner, other, plan, names, step, folder)
    for seed in range(plan.seeds):
        drawing.run_seed(seed)
    course = drawing.course
    return Tickets(
        tuple(course.dense), points_of(course.rows), points_of(course.moved),
        {name: mask.bool() for name, mask in course.first.items()},
        _split(pruner), _split(other) if other is not None else "",
        pruner.workload.scoring.higher_is_better, other is None or other.workload.scoring.higher_is_better,
    )  # fmt: skip


@dataclass(slots=True)
class _Drawing:
    pruner: Pruner
    other: Pruner | None
    plan: TicketPlan
    names: Sequence[str]
    step: Tell | None
    folder: Path | None
    course: Course = field(init=False)
    _origin: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.course = Course()
        if self.folder is not None:
            states = [pruner.workload.model.state_dict() for pruner in (self.pruner, self.other) if pruner is not None]
            self._origin = origin_of(self.plan, *states)
            self.course = Course.read(self.folder, self._origin)

    def run_seed(self, seed: int) -> None:
        """Run all rounds of a seed that are not done yet."""
        course = self.course
        training = replace(self.plan.training, seed=seed)
        if seed == len(course.dense):
            start = initial(self.pruner.workload.model, self.pruner.graph.module, seed)
            self._tell(0, f"seed {seed}: dense")
            module, course.rewound = _trained(self.pruner, start, {}, training, self.plan.rewind)
            course.masks = {name: torch.ones_like(dict(module.named_parameters())[name], dtype=torch.bool) for name in self.names}
            course.weights = _state(module)
            course.dense.append(_metric(self.pruner, module))
            course.rows.append([])
            course.moved.extend([[]] if self.other is not None else [])
            self._keep()
        for number in range(len(course.rows[seed]) + 1, self.plan.rounds + 1):
            self._run_round(seed, number, training)
            if seed == 0:
                course.first = course.masks
            self._keep()

    def _run_round(self, seed: int, number: int, training: Plan) -> None:
        course = self.course
        module = copy.deepcopy(self.pruner.graph.module)
        module.load_state_dict(course.weights)
        # In the layers' order, which a file does not keep: random tickets are drawn in it.
        masks = pruned(module, {name: course.masks[name].bool() for name in self.names}, self.plan.share)
        sparsity = 1 - sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
        shuffled = random_like(masks, seed * 1000 + number)
        self._tell(0, f"seed {seed}, round {number}: winning ticket, {sparsity:.1%} removed")
        module, _ = _trained(self.pruner, course.rewound, masks, training)
        self._tell(1, f"seed {seed}, round {number}: random ticket")
        lost, _ = _trained(self.pruner, course.rewound, shuffled, training)
        row = sparsity, _metric(self.pruner, module), _metric(self.pruner, lost)
        if self.other is not None:
            metrics = []
            for place, (kind, ticket) in enumerate((("winning", masks), ("random", shuffled))):
                self._tell(2 + place, f"seed {seed}, round {number}: {kind} ticket on {self.other.workload.name}")
                metrics.append(self._transfer(self.other, ticket, training))
            course.moved[seed].append((sparsity, metrics[0], metrics[1]))
        course.rows[seed].append(row)
        course.masks, course.weights = masks, _state(module)

    def _transfer(self, other: Pruner, ticket: Mapping[str, torch.Tensor], training: Plan) -> float:
        masks = {name: ticket[name] for name in _shared(self.pruner, other, self.names)}
        begin = initial(other.workload.model, other.graph.module, training.seed)
        begin |= {
            name: value for name, value in self.course.rewound.items() if name in begin and begin[name].shape == value.shape
        }
        result, _ = _trained(other, begin, masks, training)
        return _metric(other, result)

    def _tell(self, more: int, text: str) -> None:
        """Tell the caller how far the drawing is; ``more``: trainings of this round that are done."""
        if self.step is not None:
            total = self.plan.seeds * (1 + self.plan.rounds * (2 + (2 if self.other is not None else 0)))
            self.step(self.course.trainings + more, total, text)

    def _keep(self) -> None:
        if self.folder is not None:
            self.course.write(self.folder, self._origin)


def _trained(
    pruner: Pruner, start: State, masks: Mapping[str, torch.Tensor], plan: Plan, rewind: float | None = None
) -> tuple[fx.GraphModule, State]:
    """Train a copy of the model from a state; if asked for, its state at the rewinding step comes with it."""
    module = copy.deepcopy(pruner.graph.module)
    module.load_state_dict(start)
    held = FixedMask(masks) if masks else None
    early = start
    if rewind:
        before = copy.deepcopy(module)
        train(before, pruner.workload, plan, sparsifier=held, keep_best=False, validator=_Blind(pruner.workload), until=rewind)
        early = _state(before)
    train(module, pruner.workload, plan, sparsifier=held, keep_best=False, validator=_Blind(pruner.workload))
    return module, early


def _state(module: fx.GraphModule) -> State:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class _Blind(Validator):
    """Scores nothing: nothing is chosen by validation here, and the metric is taken but once, at the end."""

    def __call__(self, module: nn.Module) -> Any:  # noqa: ARG002
        return Measurement(0.0, "none", 0.0, 0.0, 1)


def _split(pruner: Pruner) -> str:
    return "test" if pruner.workload.test is not None else "validation"


def _metric(pruner: Pruner, module: fx.GraphModule) -> float:
    workload = pruner.workload
    validator = Validator(replace(workload, validation=workload.test) if workload.test is not None else workload)
    validator.teach(pruner.graph.module)
    return validator(module).value


def _shared(pruner: Pruner, other: Pruner, names: Sequence[str]) -> list[str]:
    theirs = {name: p.shape for name, p in other.graph.module.named_parameters()}
    ours = {name: p.shape for name, p in pruner.graph.module.named_parameters()}
    return [name for name in names if theirs.get(name) == ours[name]]
