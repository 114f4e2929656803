"""The finished trials of a study as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from hwprune.searching.sampling.problem import Array


@dataclass(slots=True)
class History:
    """Finished trials as arrays, in order."""

    chosen: list[Array] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    drop: list[float] = field(default_factory=list)
    ratio: list[float] = field(default_factory=list)
    ratio_sd: list[float] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    keys: set[bytes] = field(default_factory=set)
    saved: list[Mapping[str, float]] = field(default_factory=list)
    running: list[Array] = field(default_factory=list)
    duplicates: int = 0

    @property
    def position(self) -> int:
        """How many proposals came before, those that were lost and proposed again counted once: what draws follow from."""
        return len(self.keys) + self.duplicates


def nan_if_none(value: float | None) -> float:
    return np.nan if value is None else float(value)


def planned_parameters(trial: FrozenTrial) -> Mapping[str, Any]:
    """Parameters of a trial that is not finished, as far as they are known."""
    fixed = trial.system_attrs.get("fixed_params")
    return trial.params or (fixed if isinstance(fixed, dict) else {})
