"""What `hwprune verify` finds of one model, and what a build may ask of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hwprune.records.measurement import Measurement


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; ``passed`` None: for information only."""

    name: str
    passed: bool | None
    text: str


@dataclass(slots=True)
class Verified:
    """One model with the checks that were made of it."""

    name: str
    checks: list[Check] = field(default_factory=list)
    speedup: Measurement | None = None
    recorded_speedup: float | None = None
    drop: float | None = None
    """The metric's drop against the dense model, as scored now."""

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "passed": self.passed,
            "checks": [{"name": c.name, "passed": c.passed, "text": c.text} for c in self.checks],
            "speedup": None if self.speedup is None else self.speedup.to_json(),
            "recorded_speedup": self.recorded_speedup,
            "drop": self.drop,
        }


@dataclass(frozen=True, slots=True)
class Gate:
    """What a model must reach to pass, whatever was recorded; None: nothing. For builds that are to fail otherwise.

    Attributes:
        min_speedup: over dense, as measured now, on this machine.
        max_drop: of the metric against dense, in its own unit, as scored now.
    """

    min_speedup: float | None = None
    max_drop: float | None = None

    def judge(self, verified: Verified) -> None:
        """Add a check for each limit that is set."""
        if self.min_speedup is not None:
            speedup = verified.speedup
            text = f"at least {self.min_speedup:g}x is asked for: "
            text += "no speedup could be measured" if speedup is None else f"{speedup.value:.2f}x"
            verified.checks.append(Check("speedup", speedup is not None and speedup.value >= self.min_speedup, text))
        if self.max_drop is not None:
            drop = verified.drop
            text = f"at most {self.max_drop:g} is allowed: " + ("it could not be scored" if drop is None else f"{drop:+.4f}")
            verified.checks.append(Check("drop", drop is not None and drop <= self.max_drop + 1e-12, text))
