"""What must hold before a search starts or goes on; every check raises `UsageError`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.recovery.loop.losses import loss_fault
from hwprune.recovery.plan import Plan
from hwprune.workload import data_checks
from hwprune.workload.workload import Workload

SHARES = ("top1", "top5", "agreement")
"""Metrics that lie between 0 and 1."""


def check_limit(max_drop: float | None, workload: Workload) -> None:
    """A share can't drop by more than 1: who writes 5 means 5 %."""
    if max_drop is not None and max_drop > 1 and workload.scoring.name in SHARES:
        raise UsageError(
            f"--max-drop {max_drop:g} is more than all of {workload.scoring.name}, which lies between 0 and 1: did you mean "
            f"{max_drop:g}%?"
        )


def check_training(plan: Plan | None, pruner: Pruner) -> None:
    """Before hours of search: can finalists be trained at all?"""
    if plan is None:
        return
    what, workload = f"--recover {plan.text()}", pruner.workload
    if workload.train is None:
        raise UsageError(f"{what} needs training data: give the workload a loader, hwprune.Workload(train=...)")
    if pruner.untraceable:
        raise UsageError(f"{what} needs a model that can be traced: {pruner.untraceable}")
    inputs, targets = next(workload.batches("train"))  # an empty loader must be known now, not after the search
    data_checks.check_batches(workload, pruner.graph.module.eval(), ("train",))
    if targets is None and plan.task_weight > 0:
        raise UsageError(f"{what} needs labels, and the train loader gives none: distill:EPOCHS learns from the dense model")
    if all(not parameter.requires_grad for parameter in workload.model.parameters()):
        raise UsageError(f"{what}: every parameter of the model is frozen (requires_grad=False): nothing can be trained")
    if plan.task_weight > 0:
        problem = loss_fault(workload, pruner.graph.module.eval(), inputs, targets)
        if problem:
            raise UsageError(f"{what}: on the first training batch of the dense model {problem}")


def check_same_model(run: Path, before: str | None, now: str) -> None:
    """A study goes on only with the model that it was started with."""
    if before not in (None, now):
        raise UsageError(f"{run} was started with another model: its weights have another fingerprint")


def check_same_device(run: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """A search goes on only on the same device and with the same versions."""
    if before is None or before == now:
        return
    changed = [f"{key}: {before.get(key)!r} -> {value!r}" for key, value in now.items() if before.get(key) != value]
    raise UsageError(
        f"{run} was measured under other conditions; numbers of different machines or versions can't be mixed:", changed
    )


def check_same_metric(run: Path, before: float, now: float, *, exact: bool) -> None:
    """The same data give the same dense metric; on another device a few answers may flip."""
    if abs(before - now) > (1e-6 if exact else 0.02) * max(1.0, abs(before)):
        raise UsageError(f"{run} was started with other validation data: the dense model scored {before:.6g}, now {now:.6g}")
