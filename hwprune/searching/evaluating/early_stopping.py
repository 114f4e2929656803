"""Stopping candidates early that are surely beaten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hwprune.records.measurement import Measurement

SCREEN_EXAMPLES = 100
"""At least so many examples decide about stopping early; a split with fewer than three times as many is run at once."""
SURE = 3.0
"""Standard errors by which a candidate must be worse, and slower, to be stopped."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A finished trial as a yardstick for stopping others early.

    Attributes:
        ratio: of latencies, as measured.
        high: divergence at its upper end (three standard errors).
    """

    number: int
    ratio: float
    high: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What the search expects of a candidate and whom it competes with.

    Attributes:
        predicted: ``divergence``, ``drop``, ``ratio``, ``ratio_sd``; empty: nothing is expected.
        rivals: the front so far.
    """

    predicted: Mapping[str, float] = field(default_factory=dict)
    rivals: tuple[Rival, ...] = ()

    def beaten_by(self, divergence: Measurement) -> Rival | None:
        """A rival that is surely closer to dense, and surely at least as fast; None: it may still be of use."""
        if "ratio" not in self.predicted:
            return None
        low = divergence.value - SURE / 1.96 * (divergence.value - divergence.ci_low)
        fastest = self.predicted["ratio"] - SURE * self.predicted["ratio_sd"]
        return next((one for one in self.rivals if one.ratio <= fastest and one.high < low), None)


class Stopped(Exception):  # noqa: N818 - not an error: others are better already
    """A candidate is stopped early."""

    def __init__(self, stage: str, reason: str, divergence: Measurement) -> None:
        super().__init__(reason)
        self.stage, self.reason, self.divergence = stage, reason, divergence
