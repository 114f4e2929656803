"""The parts of a training (what is trained, by which plan, with whose help), and the state that moves meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from hwprune.records.measurement import Measurement
from hwprune.recovery.loop.validation import device_of
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.base import FixedMask, Sparsifier, State
from hwprune.workload.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """The parts of one training.

    Attributes:
        module: a traced model; its weights are trained in place.
        sparsifier: holds or moves masks meanwhile.
        teacher: the dense model, where the plan is taught by one.
        taps: nodes whose outputs are compared with the teacher's.
        device: where it is trained.
    """

    module: fx.GraphModule
    workload: Workload
    plan: Plan
    sparsifier: Sparsifier | None = None
    teacher: fx.GraphModule | None = None
    taps: Sequence[str] = ()
    device: torch.device = field(
        default_factory=lambda: torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    )

    @property
    def raises_sparsity(self) -> bool:
        """Does sparsity rise meanwhile?"""
        return self.sparsifier is not None and not isinstance(self.sparsifier, FixedMask)

    @property
    def held_masks(self) -> Mapping[str, torch.Tensor]:
        """Parameter -> keep mask that stays as it is."""
        return self.sparsifier.masks if isinstance(self.sparsifier, FixedMask) else {}

    @property
    def frozen(self) -> set[str]:
        """Parameters that the user does not want to be trained."""
        return {name for name, p in self.workload.model.named_parameters() if not p.requires_grad}

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """Move the models to the device that trains, and back: the teacher is the user's own, and must not stay there."""
        homes = [(model, device_of(model)) for model in (self.module, self.teacher) if model is not None]
        try:
            for model, _ in homes:
                model.to(self.device).eval()
            yield
        finally:
            for model, home in homes:
                model.to(home)

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of all weights and buffers."""
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    def load(self, weights: Mapping[str, torch.Tensor], *, partly: bool = False) -> None:
        self.module.load_state_dict(dict(weights), strict=not partly)

    def sparsifier_state(self) -> State:
        return self.sparsifier.state() if self.sparsifier is not None else {}

    def restore_sparsifier(self, state: State) -> None:
        if self.sparsifier is not None:
            self.sparsifier.restore(state)

    @contextlib.contextmanager
    def as_run(self) -> Iterator[None]:
        """Give the module the weights that it is run with meanwhile, where masks act in the forward pass alone."""
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


@dataclass(slots=True)
class TrainingState:
    """The point that a training has reached; a checkpoint holds all of it.

    Attributes:
        after: the best validation so far, at ``best_step``.
        stale: validations since then.
        spent: seconds of earlier runs that this one goes on from.
        best: weights of the best validation.
        mean: moving average of the weights, where the plan wants one.
        losses: of the batches since the last validation.
        rng: random state to go on from; None: it goes on by itself.
    """

    after: Measurement
    best: dict[str, torch.Tensor]
    rate: float = 0.0
    step: int = 0
    examples: int = 0
    restarts: int = 0
    best_step: int = 0
    stale: int = 0
    spent: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    mean: dict[str, torch.Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    rng: dict[str, torch.Tensor] | None = None

    def begin_anew(self, before: Measurement, weights: dict[str, torch.Tensor]) -> None:
        """Begin from the first step, as if nothing had been trained; the restart is counted by the caller."""
        self.step = self.best_step = self.stale = 0
        self.history.clear()
        self.forget_steps()
        self.best, self.after, self.rng = weights, before, None

    def forget_steps(self) -> None:
        """Forget the losses and the average of steps that do not count."""
        self.losses.clear()
        self.mean.clear()


class NotFinite(Exception):  # noqa: N818 - it leads to another try
    """Numbers have left the range of floating point."""
