"""The plan of a training run, as a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hwprune.errors import UsageError
from hwprune.recovery import schedules

KINDS = ("finetune", "distill", "gradual")
OPTIMIZERS = ("adamw", "sgd")
NORMS = ("auto", "frozen", "train")
PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan by which a pruned model is trained.

    Attributes:
        kind: ``finetune`` (task loss), ``distill`` (the dense model's outputs; labels are not needed), ``gradual`` (sparsity
            rises while the model is trained with both, and training goes on afterwards).
        epochs: passes over the train split, fractions allowed.
        optimizer: ``adamw`` or ``sgd`` (with Nesterov momentum 0.9).
        rate: highest learning rate; None: the best of short trials around `default_rate` (see `hwprune.recovery.loop.rates`).
        decay: weight decay of everything with more than one dim.
        warmup: share of the steps over which the rate rises; then it falls along a cosine to 1 % of the highest.
        clip: largest norm of the gradient; 0: any.
        accumulate: batches whose gradients are added up for one step.
        norms: batch norms follow the batches (``train``), keep their statistics (``frozen``), or do what the batches' size allows
            (``auto``): statistics of fewer than 16 examples are noise.
        task: weight of the task loss beside a teacher's; a pure distillation has 0.
        temperature: of the softened outputs (Hinton et al. 2015).
        features: weight of the distance of inner outputs to the teacher's (FitNets; ZipLM's token-wise term).
        schedule: of sparsity, for what is pruned while training.
        settle: share of the steps that are left for training at the final sparsity.
        updates: how often sparsity rises within the rest.
        checks: validations an epoch.
        patience: validations without a better one after which training ends; 0: never.
        precision: ``auto``: bf16 where a GPU has it, else fp32.
        average: factor of an exponential moving average of the weights that is validated instead of them; 0: none.
        checkpoint_s: seconds between two checkpoints.
        seed: of the order of batches and of dropout.
    """

    kind: str = "finetune"
    epochs: float = 1.0
    optimizer: str = "adamw"
    rate: float | None = None
    decay: float = 1e-4
    warmup: float = 0.05
    clip: float = 1.0
    accumulate: int = 1
    norms: str = "auto"
    task: float | None = None
    temperature: float = 2.0
    features: float = 0.0
    schedule: str = "cubic"
    settle: float = 0.4
    updates: int = 20
    checks: int = 1
    patience: int = 0
    precision: str = "auto"
    average: float = 0.0
    checkpoint_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        for name, allowed in (("kind", KINDS), ("optimizer", OPTIMIZERS), ("norms", NORMS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                faults.append(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        ranges: tuple[tuple[tuple[str, ...], type, Callable[[float], bool], str], ...] = (
            (("epochs", "rate", "temperature"), float, lambda value: value > 0, "> 0"),
            (("decay", "clip", "features", "checkpoint_s"), float, lambda value: value >= 0, ">= 0"),
            (("warmup", "settle", "average"), float, lambda value: 0 <= value < 1, "in [0, 1)"),
            (("task",), float, lambda value: 0 <= value <= 1, "in [0, 1]"),
            (("accumulate", "updates", "checks"), int, lambda value: value >= 1, "a whole number, at least 1"),
            (("patience", "seed"), int, lambda value: value >= 0, "a whole number, at least 0"),
        )
        for names, kind, holds, must in ranges:
            for name in names:
                value = getattr(self, name)
                if value is None and name in ("rate", "task"):
                    continue
                known_kind = isinstance(value, (int, kind)) and not isinstance(value, bool)
                if not (known_kind and math.isfinite(value) and holds(value)):
                    faults.append(f"{name} must be {must}, got {value!r}")
        try:
            schedules.get(self.schedule)
        except UsageError as error:
            faults.append(str(error))
        if faults:
            raise UsageError("this training can't be started:", faults)

    @property
    def task_weight(self) -> float:
        """Weight of the task loss: ``task``, or else 1 in a fine-tuning, 0.5 in gradual pruning, 0 in a distillation."""
        if self.task is not None:
            return self.task
        return {"finetune": 1.0, "distill": 0.0, "gradual": 0.5}[self.kind]

    @property
    def taught(self) -> bool:
        """Does the dense model's output take part?"""
        return self.task_weight < 1 or self.features > 0

    def text(self) -> str:
        return f"{self.kind}:{self.epochs:g}"

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def parse(text: str) -> Plan | None:
    """``finetune:E``, ``distill:E`` or ``gradual:E`` as a plan; None if it is none of these. Raises `UsageError`."""
    kind, colon, epochs = text.partition(":")
    if kind not in KINDS:
        return None
    if not colon:
        return Plan(kind)
    try:
        count = float(epochs)
    except ValueError:
        raise UsageError(f"{text!r} must be {kind}:EPOCHS with a number of epochs, as in {kind}:2") from None
    return Plan(kind, count)


def default_rate(plan: Plan, *, normed: bool) -> float:
    """Highest learning rate that is tried first where nobody says one.

    Args:
        normed: has the model batch norms? Networks without (transformers) take ten times less.
    """
    if plan.optimizer == "sgd":
        return 0.01 if normed else 0.002
    return 1e-3 if normed else 1e-4


def shorter(plan: Plan, share: float) -> Plan:
    """The plan with a part of its epochs, for choosing who gets all of them."""
    return replace(plan, epochs=plan.epochs * share)
