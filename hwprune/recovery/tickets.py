"""Lottery tickets: iterative magnitude pruning with rewinding (Frankle & Carbin 2019, arXiv 1803.03635; Frankle et al. 2020,
arXiv 1912.05671 for rewinding to an early step).

Train, remove the smallest weights of all layers together, set what is left back to its value at the rewinding step, train again.
A ticket wins if it trains better than random ones with the same number of weights in each layer, from the same values.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

import torch
from torch import fx, nn

from hwprune.errors import UsageError
from hwprune.pruning import Pruner
from hwprune.recovery.judging import Judge
from hwprune.recovery.masking import Held
from hwprune.recovery.plan import Plan
from hwprune.recovery.training import train
from hwprune.workload import Workload

EPOCHS = 6.0
RATE = 4e-3
"""Highest learning rate of AdamW from scratch where the plan gives none."""
State = dict[str, torch.Tensor]
Step = Callable[[int, int, str], None]
"""(trainings done, all trainings, what is trained next)."""


@dataclass(frozen=True, slots=True)
class TicketPlan:
    """What to do.

    Attributes:
        rounds: of pruning.
        share: of the weights that are left, removed in each round.
        rewind: to which part of the training the weights go back; 0: to their initialisation.
        seeds: repetitions with other initial weights, another order of batches, and other random tickets.
        training: of each ticket; only `finetune` with all its epochs makes sense, from scratch.
    """

    rounds: int = 10
    share: float = 0.2
    rewind: float = 0.01
    seeds: int = 3
    training: Plan = field(default_factory=lambda: Plan("finetune", EPOCHS, rate=RATE))

    def __post_init__(self) -> None:
        faults = []
        if self.rounds < 1:
            faults.append(f"rounds must be at least 1, got {self.rounds}")
        if not 0 < self.share < 1:
            faults.append(f"share must be in (0, 1), got {self.share}")
        if not 0 <= self.rewind < 1:
            faults.append(f"rewind must be in [0, 1), got {self.rewind}")
        if self.seeds < 2:
            faults.append(f"seeds must be at least 2, or there is no interval, got {self.seeds}")
        if faults:
            raise UsageError("these tickets can't be drawn:", faults)


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over seeds with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(fmean(values), fmean(values) - half, fmean(values) + half)


@dataclass(frozen=True, slots=True)
class Point:
    """Tickets of one sparsity: the metric of each seed, and their paired difference (winning minus random)."""

    sparsity: float
    winning: tuple[float, ...]
    random: tuple[float, ...]

    @property
    def gain(self) -> Interval:
        return Interval.of([a - b for a, b in zip(self.winning, self.random, strict=True)])

    @property
    def apart(self) -> bool:
        """Do the intervals of winning and random tickets not overlap?"""
        a, b = Interval.of(self.winning), Interval.of(self.random)
        return a.low > b.high or b.low > a.high

    def to_json(self) -> dict[str, Any]:
        a, b, gain = Interval.of(self.winning), Interval.of(self.random), self.gain
        return {
            "sparsity": self.sparsity, "winning": a.mean, "winning_ci_low": a.low, "winning_ci_high": a.high, "random": b.mean,
            "random_ci_low": b.low, "random_ci_high": b.high, "gain": gain.mean, "gain_ci_low": gain.low,
            "gain_ci_high": gain.high, "apart": self.apart,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Tickets:
    """What came of it.

    Attributes:
        dense: the metric of each seed with all weights, trained the same way.
        points: by sparsity.
        transferred: on the second workload, where there was one.
        masks: of the first seed's last round: parameter -> keep mask.
        split, transfer_split: that the metrics are from.
        higher_is_better, transfer_higher_is_better: of the metrics.
    """

    dense: tuple[float, ...]
    points: tuple[Point, ...]
    transferred: tuple[Point, ...]
    masks: Mapping[str, torch.Tensor]
    split: str
    transfer_split: str = ""
    higher_is_better: bool = True
    transfer_higher_is_better: bool = True


def draw(workload: Workload | Pruner, plan: TicketPlan, transfer: Workload | None = None, step: Step | None = None) -> Tickets:
    """Find tickets and compare them with random ones; on ``transfer`` too, where one is given.

    Metrics are of the last weights of each training, on the test split (validation where there is none).

    Raises:
        UsageError: the model has no linear or convolution layer, or the two workloads share no layer.
        CandidateFailure, WorkloadError: as `hwprune.recovery.training.train`.
    """
    pruner = workload if isinstance(workload, Pruner) else Pruner(workload)
    other = Pruner(transfer) if transfer is not None else None
    names = [matrix.parameter for matrix in pruner.graph.matrices]
    if not names:
        raise UsageError(f"{pruner.workload.name} has no linear or convolution layer to prune")
    if other is not None and not (shared := _shared(pruner, other, names)):
        raise UsageError(f"{pruner.workload.name} and {other.workload.name} share no layer: a ticket can't be transferred")
    total = plan.seeds * (1 + plan.rounds * (2 + (2 if other is not None else 0)))
    done = 0

    def tell(text: str) -> None:
        nonlocal done
        if step is not None:
            step(done, total, text)
        done += 1

    dense: list[float] = []
    rows: list[list[tuple[float, float, float]]] = []
    moved: list[list[tuple[float, float, float]]] = []
    first: dict[str, torch.Tensor] = {}
    for seed in range(plan.seeds):
        training = replace(plan.training, seed=seed)
        start = initial(pruner.workload.model, pruner.graph.module, seed)
        tell(f"seed {seed}: dense")
        module, rewound = _trained(pruner, start, {}, training, plan.rewind)
        dense.append(_metric(pruner, module))
        masks = {name: torch.ones_like(dict(module.named_parameters())[name], dtype=torch.bool) for name in names}
        rows.append([])
        moved.append([])
        for number in range(1, plan.rounds + 1):
            masks = pruned(module, masks, plan.share)
            sparsity = 1 - sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
            shuffled = random_like(masks, seed * 1000 + number)
            tell(f"seed {seed}, round {number}: winning ticket, {sparsity:.1%} removed")
            module, _ = _trained(pruner, rewound, masks, training)
            tell(f"seed {seed}, round {number}: random ticket")
            lost, _ = _trained(pruner, rewound, shuffled, training)
            rows[-1].append((sparsity, _metric(pruner, module), _metric(pruner, lost)))
            if other is not None:
                found = []
                for kind, ticket in (("winning", masks), ("random", shuffled)):
                    tell(f"seed {seed}, round {number}: {kind} ticket on {other.workload.name}")
                    own = {name: ticket[name] for name in shared}
                    begin = initial(other.workload.model, other.graph.module, seed)
                    begin |= {
                        name: value for name, value in rewound.items() if name in begin and begin[name].shape == value.shape
                    }
                    result, _ = _trained(other, begin, own, training)
                    found.append(_metric(other, result))
                moved[-1].append((sparsity, found[0], found[1]))
        if seed == 0:
            first = masks
    return Tickets(
        tuple(dense), _points(rows), _points(moved), first, _split(pruner), _split(other) if other is not None else "",
        pruner.workload.scoring.higher_is_better, other is None or other.workload.scoring.higher_is_better,
    )  # fmt: skip


def initial(model: nn.Module, graph: fx.GraphModule, seed: int) -> State:
    """A traced model's state with new initial values: each layer's own `reset_parameters`.

    Parameters that belong to no layer with such a method (a position embedding, a class token, a norm of one's own) are drawn
    from a normal distribution with mean and deviation of the trained ones; scalars keep their values.
    """
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        known: set[int] = set()
        for layer in fresh.modules():
            reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(reset):
                reset()
                known |= {id(p) for p in layer.parameters(recurse=False)}
        for parameter in fresh.parameters():
            if id(parameter) not in known and parameter.is_floating_point() and parameter.numel() > 1:
                parameter.normal_(float(parameter.mean()), float(parameter.std()))
    state = fresh.state_dict()
    return {name: state[name].detach().clone() if name in state else value.clone() for name, value in graph.state_dict().items()}


@torch.no_grad()
def pruned(module: nn.Module, masks: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """Remove a share of the weights that are left, the smallest of all layers together; each layer keeps one at least."""
    parameters = dict(module.named_parameters())
    left = torch.cat([parameters[name].detach().abs()[mask] for name, mask in masks.items()])
    count = round(share * len(left))
    threshold = left.kthvalue(max(1, count)).values
    found = {}
    for name, mask in masks.items():
        weight = parameters[name].detach().abs()
        keep = mask & (weight > threshold) if count else mask.clone()
        if not bool(keep.any()):
            keep[torch.unravel_index((weight * mask).argmax(), keep.shape)] = True
        found[name] = keep
    return found


def random_like(masks: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Masks with as many weights in each layer, anywhere in it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.reshape(-1)[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
        for name, mask in masks.items()
    }


def _trained(
    pruner: Pruner, start: State, masks: Mapping[str, torch.Tensor], plan: Plan, rewind: float | None = None
) -> tuple[fx.GraphModule, State]:
    """A model trained from a state, and, if asked for, its state at the rewinding step."""
    module = copy.deepcopy(pruner.graph.module)
    module.load_state_dict(start)
    held = Held(masks) if masks else None
    early = start
    if rewind:
        before = copy.deepcopy(module)
        train(before, pruner.workload, plan, sparsifier=held, keep_best=False, judge=_Blind(pruner.workload), until=rewind)
        early = {name: value.detach().clone() for name, value in before.state_dict().items()}
    train(module, pruner.workload, plan, sparsifier=held, keep_best=False, judge=_Blind(pruner.workload))
    return module, early


class _Blind(Judge):
    """Nothing is chosen by validation here, so it is scored but once."""

    def __call__(self, module: nn.Module) -> Any:  # noqa: ARG002
        from hwprune.measurement import Measurement

        return Measurement(0.0, "none", 0.0, 0.0, 1)


def _split(pruner: Pruner) -> str:
    return "test" if pruner.workload.test is not None else "validation"


def _metric(pruner: Pruner, module: fx.GraphModule) -> float:
    workload = pruner.workload
    judge = Judge(replace(workload, validation=workload.test) if workload.test is not None else workload)
    judge.teach(pruner.graph.module)
    return judge(module).value


def _shared(pruner: Pruner, other: Pruner, names: Sequence[str]) -> list[str]:
    theirs = {name: p.shape for name, p in other.graph.module.named_parameters()}
    ours = {name: p.shape for name, p in pruner.graph.module.named_parameters()}
    return [name for name in names if theirs.get(name) == ours[name]]


def _points(rows: Sequence[Sequence[tuple[float, float, float]]]) -> tuple[Point, ...]:
    """Rounds of all seeds side by side; sparsities of one round differ between seeds by single weights."""
    return tuple(
        Point(fmean(row[0] for row in found), tuple(row[1] for row in found), tuple(row[2] for row in found))
        for found in zip(*rows, strict=True)
    )
