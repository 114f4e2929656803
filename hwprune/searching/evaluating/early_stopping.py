"""Stopping candidates early that are surely worse than one that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hwprune.records.measurement import Measurement

SCREEN_EXAMPLES = 100
"""At least so many examples decide about stopping early (see `screen`)."""
STOP_SD = 3.0
"""Standard errors by which a candidate must be worse, and slower, to be stopped."""


@dataclass(frozen=True, slots=True)
class FrontMember:
    """A finished trial that others must beat.

    Attributes:
        ratio: its latency / dense latency, as measured.
        high: divergence at its upper end (`STOP_SD` standard errors).
    """

    number: int
    ratio: float
    high: float


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the search expects of a candidate, and the front that it must beat.

    Attributes:
        predicted: ``divergence``, ``drop``, ``ratio``, ``ratio_sd``; empty: nothing is expected.
        front: the front so far.
    """

    predicted: Mapping[str, float] = field(default_factory=dict)
    front: tuple[FrontMember, ...] = ()

    @property
    def rivals(self) -> tuple[FrontMember, ...]:
        """Members of the front that are surely at least as fast."""
        if "ratio" not in self.predicted:
            return ()
        fastest = self.predicted["ratio"] - STOP_SD * self.predicted["ratio_sd"]
        return tuple(member for member in self.front if member.ratio <= fastest)

    def beaten_by(self, divergence: Measurement) -> FrontMember | None:
        """A member of the front that is surely closer to dense, and surely at least as fast; None: it may still be of use."""
        low = divergence.value - STOP_SD / 1.96 * (divergence.value - divergence.ci_low)
        return next((member for member in self.rivals if member.high < low), None)

    def stop_if_beaten(self, stage: str, divergence: Measurement) -> None:
        """Raises `Stopped` if a member of the front is surely better."""
        member = self.beaten_by(divergence)
        if member is not None:
            raise Stopped(
                stage,
                f"worse than trial {member.number}: {divergence.value:.3g} {divergence.unit} from dense on {divergence.samples} "
                f"examples (trial {member.number}: below {member.high:.3g}), and not expected to be faster",
                divergence,
            )


class Stopped(Exception):  # noqa: N818 - not an error: others are better already
    """A candidate is stopped early."""

    def __init__(self, stage: str, reason: str, divergence: Measurement) -> None:
        super().__init__(reason)
        self.stage, self.reason, self.divergence = stage, reason, divergence
