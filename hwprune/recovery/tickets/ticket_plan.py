"""The plan of a lottery ticket experiment."""

from __future__ import annotations

from dataclasses import dataclass, field

from hwprune.errors import UsageError
from hwprune.recovery.plan import Plan

EPOCHS = 6.0
RATE = 4e-3
"""Highest learning rate of AdamW from scratch where the plan gives none."""


@dataclass(frozen=True, slots=True)
class TicketPlan:
    """The settings of a lottery ticket experiment.

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
