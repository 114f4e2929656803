"""The course of a drawing of lottery tickets; it is written after each round, so that a kill costs one round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hwprune.common.contents import content
from hwprune.errors import UsageError
from hwprune.recovery.loop.checkpoint import Checkpoint

FILE = "progress.safetensors"
State = dict[str, torch.Tensor]
Row = tuple[float, float, float]
"""(sparsity, metric of the winning ticket, of the random one)."""


@dataclass(slots=True)
class Course:
    """The state of a drawing after some rounds.

    Attributes:
        dense: metric of each seed that has begun.
        rows: rounds of each of them; ``moved``: the same on the second workload.
        masks, weights, rewound: of the seed that is being worked on: keep masks and trained weights of its last round, and the
            values to which weights go back.
        first: masks of the first seed's last round.
    """

    dense: list[float] = field(default_factory=list)
    rows: list[list[Row]] = field(default_factory=list)
    moved: list[list[Row]] = field(default_factory=list)
    masks: State = field(default_factory=dict)
    weights: State = field(default_factory=dict)
    rewound: State = field(default_factory=dict)
    first: State = field(default_factory=dict)

    @property
    def trainings(self) -> int:
        """The number of trainings that are done."""
        return len(self.dense) + 2 * sum(map(len, self.rows)) + 2 * sum(map(len, self.moved))

    def write(self, folder: Path, origin: str) -> None:
        """Write it into a folder. Raises `UsageError` if nothing can be written there."""
        facts = {"origin": origin, "dense": self.dense, "rows": self.rows, "moved": self.moved}
        tensors = {"masks": self.masks, "weights": self.weights, "rewound": self.rewound, "first": self.first}
        try:
            Checkpoint(facts, tensors).write(folder / FILE)
        except OSError as error:
            raise UsageError(f"{folder / FILE} can't be written: {error.strerror or error}") from error

    @classmethod
    def read(cls, folder: Path, origin: str) -> Course:
        """The course of the same drawing, or a new one if there is none.

        Raises:
            UsageError: it is of another drawing, or can't be read.
        """
        path = folder / FILE
        if not path.exists():
            return cls()
        checkpoint = Checkpoint.read(path)
        if checkpoint is None:
            raise UsageError(f"{path} can't be read: delete it to begin anew")
        if checkpoint.facts.get("origin") != origin:
            raise UsageError(f"{path} is of other tickets (another workload, other weights or options): choose another folder")
        facts, tensors = checkpoint.facts, checkpoint.tensors
        try:
            rows, moved = ([[(a, b, c) for a, b, c in seed] for seed in facts[name]] for name in ("rows", "moved"))
            course = cls(list(facts["dense"]), rows, moved)
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{path} can't be read: delete it to begin anew") from None
        for name in ("masks", "weights", "rewound", "first"):
            setattr(course, name, tensors.get(name, {}))
        return course


def origin_of(plan: Any, *states: Mapping[str, torch.Tensor]) -> str:
    """A digest of what decides how a drawing goes: the plan (a dataclass) and the models' weights."""
    hasher = hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode())
    for state in states:
        for name in sorted(state):
            hasher.update(f"{name} {tuple(state[name].shape)}".encode())
            hasher.update(content(state[name]))
    return hasher.hexdigest()
