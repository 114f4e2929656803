"""The outcome of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hwprune.records.measurement import Measurement


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a training. The module holds the best weights that validation saw, those before training included.

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
