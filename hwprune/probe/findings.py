"""What a probe finds, as values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """One keep count: seconds of the unit's segments, and the whole model's predicted speedup if only this is cut.

    ``source`` of the seconds: ``measured``, ``predicted`` (a segment that can't run alone, or that the regressor knows well
    enough) or ``estimated``.
    """

    keep: int
    seconds: float
    half_width_s: float
    speedup: float
    source: str


@dataclass(frozen=True, slots=True)
class UnitProbe:
    """One unit: ``share`` of the model's time in its segments, its staircase, and what it is like."""

    name: str
    role: str
    size: int
    share: float
    steps: tuple[Step, ...]
    like: str | None
    note: str = ""
    label: str = ""
    """The unit's name for people."""

    @property
    def shown(self) -> str:
        return self.label or self.name


@dataclass(frozen=True, slots=True)
class PatternProbe:
    """A whole model with the most of one pattern: measured speedup with interval, or why there is none."""

    pattern: str
    what: str
    speedup: dict[str, Any] | None
    verdict: str
    note: str = ""
    details: tuple[dict[str, Any], ...] = ()


@dataclass(slots=True)
class Probe:
    """Everything that was found. ``source``: ``measured`` or ``estimated``."""

    workload: str
    target: str
    source: str
    identity: dict[str, Any]
    dense_s: float
    dense_half_width_s: float
    multiple: int
    multiple_from: dict[str, int]
    units: list[UnitProbe] = field(default_factory=list)
    patterns: list[PatternProbe] = field(default_factory=list)
    operators: list[dict[str, Any]] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    profile_covers: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"schema": 1, **asdict(self)}
