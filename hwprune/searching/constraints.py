"""What a point must keep to be of use, and what comes nearest when none does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hwprune.common import formatting
from hwprune.records.trial import Trial

DROP_SLACK, SPEED_SLACK = 0.01, 0.97
"""How far validation (a point; of metrics beyond 1 a hundredth of the dense value) and a single session may be off: who misses a
constraint by less may still meet it when confirmed."""
REPAIR = 2.5
"""A drop that the quick compensation leaves, over what the thorough one may leave of it."""


WORDS = {"drop": "the drop", "speedup": "the speedup", "latency_s": "the latency", "size_bytes": "the size"}
"""Limits as people call them."""


@dataclass(frozen=True, slots=True)
class Constraints:
    """Limits; None: no limit.

    Attributes:
        max_drop: in the metric's own unit.
        min_speedup: times dense.
        max_latency_s: of one batch.
        max_size: bytes of the model's file.
    """

    max_drop: float | None = None
    min_speedup: float | None = None
    max_latency_s: float | None = None
    max_size: int | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.max_drop, self.min_speedup, self.max_latency_s, self.max_size))

    def excess(self, drop: float, speedup: float, latency_s: float, size: int) -> dict[str, float]:
        """Constraint -> by how much it is missed, as Optuna wants it (feasible where <= 0)."""
        found = {}
        if self.max_drop is not None:
            found["drop"] = drop - self.max_drop
        if self.min_speedup is not None:
            found["speedup"] = self.min_speedup - speedup
        if self.max_latency_s is not None:
            found["latency_s"] = latency_s - self.max_latency_s
        if self.max_size is not None:
            found["size_bytes"] = float(size - self.max_size)
        return found

    def of(self, trial: Trial) -> dict[str, float]:
        """The excesses of a trial; empty if it was not measured."""
        if not trial.measured:
            return {}
        assert trial.drop is not None and trial.speedup is not None and trial.latency is not None
        assert trial.size_bytes is not None
        return self.excess(trial.drop, trial.speedup.value, trial.latency.value, trial.size_bytes)

    def met(self, drop: float, speedup: float, latency_s: float, size: int) -> bool:
        return all(value <= 0 for value in self.excess(drop, speedup, latency_s, size).values())

    def loosened(self, dense: float = 1.0, *, repaired: bool = False) -> Constraints:
        """With room for what validation and one session can't tell.

        Args:
            dense: the dense metric.
            repaired: finalists get a more thorough compensation, which brings back a part of their drop.
        """
        slack = DROP_SLACK * max(1.0, abs(dense))
        factor = REPAIR if repaired else 1.0
        return Constraints(
            None if self.max_drop is None else factor * self.max_drop + slack,
            None if self.min_speedup is None else self.min_speedup * SPEED_SLACK,
            None if self.max_latency_s is None else self.max_latency_s / SPEED_SLACK,
            self.max_size,
        )

    def miss(self, trial: Trial) -> float:
        """How far a trial is from meeting them, relative to the limits; 0: it does."""
        scales = {
            "drop": max(self.max_drop or 0.0, 0.01), "speedup": self.min_speedup or 1.0, "latency_s": self.max_latency_s or 1.0,
            "size_bytes": float(self.max_size or 1),
        }  # fmt: skip
        return sum(max(0.0, value) / scales[name] for name, value in self.of(trial).items())

    def text(self) -> str:
        """The limits in words."""
        words = []
        if self.max_drop is not None:
            words.append(f"drop <= {self.max_drop:g}")
        if self.min_speedup is not None:
            words.append(f"speedup >= {self.min_speedup:g}")
        if self.max_latency_s is not None:
            words.append(f"latency <= {formatting.seconds(self.max_latency_s)}")
        if self.max_size is not None:
            words.append(f"size <= {formatting.size(self.max_size)}")
        return ", ".join(words)

    def nearest(self, trials: Sequence[Trial], describe: Callable[[Trial], str]) -> str:
        """Why there is nothing to deliver, and what came nearest; whole sentences."""
        measured = [trial for trial in trials if trial.measured]
        if not measured:
            return "No candidate could be measured; the reasons are in trials.csv."
        best = min(measured, key=lambda t: (self.miss(t), t.drop or 0.0))
        fastest = max(measured, key=lambda t: t.speedup.value if t.speedup else 0.0)
        if fastest.speedup is None or fastest.speedup.value <= 1:
            return f"No candidate is faster than the dense model. Fastest: {describe(fastest)}."
        if self.miss(best) == 0:
            return f"Nearest: {describe(best)}."
        missed = ", ".join(WORDS[name] for name, value in self.of(best).items() if value > 0)
        way = (
            "the search more trials, or recover accuracy by training"
            if self.of(best).get("drop", 0) > 0
            else "the search more trials"
        )
        return (
            f"No candidate meets {self.text()}. Nearest: {describe(best)}; it misses {missed}. Loosen that limit, or give {way}."
        )
