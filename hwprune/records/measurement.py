"""A number that was obtained, with everything that makes it one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hwprune.common.files import Table


@dataclass(frozen=True, slots=True)
class Measurement:
    """``value`` in ``unit`` with a 95 % interval.

    ``conditions`` says how it was obtained (clock, number of processes, flags); JSON values only.
    """

    value: float
    unit: str
    ci_low: float
    ci_high: float
    samples: int
    conditions: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) for x in (self.value, self.ci_low, self.ci_high)):
            raise ValueError(f"a measurement must be finite: {self.value} [{self.ci_low}, {self.ci_high}]")
        if self.ci_low > self.ci_high:
            raise ValueError(f"interval [{self.ci_low}, {self.ci_high}] is upside down")
        if self.samples < 1:
            raise ValueError(f"{self.samples} samples")

    @property
    def verdict(self) -> str:
        """What the interval of a speedup says: ``faster``, ``slower``, or ``not distinguishable`` from dense."""
        return "faster" if self.ci_low > 1 else "slower" if self.ci_high < 1 else "not distinguishable"

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.ci_high - self.ci_low) / 2

    def to_json(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "unit": self.unit,
            "ci_low": self.ci_low,
            "ci_high": self.ci_high,
            "samples": self.samples,
            "conditions": dict(self.conditions),
        }

    @classmethod
    def from_table(cls, table: Table) -> Measurement:
        values = (
            table.number("value"),
            table.text("unit"),
            table.number("ci_low"),
            table.number("ci_high"),
            table.integer("samples", low=1),
            table.free("conditions"),
        )
        table.close()
        return cls(*values)


def first_targets(speedup: Measurement) -> Measurement:
    """The first target's own speedup, with which the latency goes; of a single target just that."""
    targets = speedup.conditions.get("targets")
    return replace(speedup, **targets[speedup.conditions["first"]]["speedup"]) if targets else speedup
