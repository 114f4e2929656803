"""Checkpoints of a training: written while it runs, read by the same training when it starts again."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from hwprune.common.contents import content
from hwprune.common.files import Table
from hwprune.errors import HwpruneWarning
from hwprune.records.measurement import Measurement
from hwprune.recovery.loop.checkpoint import FILE, Checkpoint, optimizer_tensors
from hwprune.recovery.loop.losses import said
from hwprune.recovery.loop.training import Training, TrainingState

NUMBERS = ("step", "examples", "rate", "restarts", "best_step", "stale", "spent")
"""The numbers of a `TrainingState` that a checkpoint holds."""


class Resuming:
    """Keeps the checkpoint of one training in a folder; without a folder nothing is kept.

    Args:
        keep: leave the last one there.
        start: what the training starts from, see `digest`; a checkpoint of anything else is none of ours.
        started: when it began, in seconds of `time.monotonic`.
    """

    def __init__(
        self, training: Training, state: TrainingState, folder: Path | None, *, keep: bool, start: str, started: float
    ) -> None:
        self._training, self._state, self._folder, self._keep, self._start = training, state, folder, keep, start
        self._started = self._saved = started

    @property
    def seconds(self) -> float:
        """Seconds that the training has taken, earlier runs included."""
        return self._state.spent + time.monotonic() - self._started

    def save(self, optimizer: torch.optim.Optimizer, *, last: bool = False, now: bool = False) -> None:
        """Write a checkpoint if it is time. A full disk ends no training: there is only nothing to go on from."""
        training, state = self._training, self._state
        if self._folder is None or (last and not self._keep):
            return
        if not (last or now) and time.monotonic() - self._saved < training.plan.checkpoint_s:
            return
        self._saved = time.monotonic()
        facts = {
            "plan": training.plan.to_json(), "origin": self._start, **{name: getattr(state, name) for name in NUMBERS},
            "history": state.history, "after": state.after.to_json(), "spent": self.seconds, "losses": state.losses,
        }  # fmt: skip
        tensors: dict[str, dict[str, torch.Tensor]] = {
            "weights": training.weights(), "best": state.best, "optimizer": optimizer_tensors(optimizer), "mean": state.mean,
            "own": dict(training.sparsifier_state()),
        }  # fmt: skip
        try:
            Checkpoint(facts, tensors).write(self._folder / FILE)
        except OSError as error:
            text = f"no checkpoint of the training could be written to {self._folder}: {said(error)}"
            warnings.warn(text, HwpruneWarning, stacklevel=2)

    def read(self) -> Checkpoint | None:
        """Go on from a checkpoint of this very training, if there is one. Nothing is changed before all of it is understood."""
        training, state = self._training, self._state
        checkpoint = Checkpoint.read(self._folder / FILE) if self._folder is not None else None
        if (
            checkpoint is None
            or checkpoint.facts.get("plan") != training.plan.to_json()
            or checkpoint.facts.get("origin") != self._start
        ):
            return None
        try:
            numbers = {name: checkpoint.facts[name] for name in NUMBERS}
            history, losses = list(checkpoint.facts["history"]), list(checkpoint.facts["losses"])
            after = Measurement.from_table(Table(checkpoint.facts["after"], "checkpoint"))
            weights, best, rng = checkpoint.tensors["weights"], checkpoint.tensors["best"], checkpoint.tensors["rng"]
        except (KeyError, TypeError):
            return None
        training.load(weights)
        state.best = {name: tensor.to(training.device) for name, tensor in best.items()}
        state.mean = {name: tensor.to(training.device) for name, tensor in checkpoint.tensors.get("mean", {}).items()}
        training.restore_sparsifier(checkpoint.tensors.get("own", {}))
        for name, value in numbers.items():
            setattr(state, name, value)
        state.history, state.losses, state.after, state.rng = history, losses, after, rng
        return checkpoint

    def finish(self) -> None:
        """Remove the checkpoint, unless it is to stay."""
        if self._folder is not None and not self._keep:
            (self._folder / FILE).unlink(missing_ok=True)


def digest(training: Training, weights: Mapping[str, torch.Tensor], until: float) -> str:
    """Identifies all that decides how a training goes; 64 hex digits."""
    hasher = hashlib.sha256()
    held = training.held_masks
    sparsifier_state = training.sparsifier_state() if not held else {}
    teacher = training.teacher.state_dict() if training.teacher is not None else {}
    for group in (weights, held, sparsifier_state, teacher):
        for name in sorted(group):
            hasher.update(name.encode())
            hasher.update(content(group[name]))
    hasher.update(f"{type(training.sparsifier).__name__} {sorted(training.frozen)} {list(training.taps)} {until}".encode())
    return hasher.hexdigest()
