"""What a search tells while it runs; the command line draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hwprune.records.trial import Trial


@dataclass(frozen=True, slots=True)
class Heading:
    """What a search is, for whoever draws its progress.

    Attributes:
        name: of the workload.
        target: where latencies come from.
        phases: what the search does, in order.
        run: the run directory.
        max_drop: the limit on the drop, or None.
        expected: seconds of each phase in the last search like this one; empty: there was none.
    """

    name: str
    target: str
    phases: tuple[str, ...] = ()
    run: str = ""
    max_drop: float | None = None
    expected: Mapping[str, float] = field(default_factory=dict)


class Progress:
    """Does nothing; callers pass a subclass that does. Not abstract: silence is a use."""

    def begin(self, heading: Heading) -> None:
        """A search begins."""

    def scale(self, *, share: bool, usual: float) -> None:
        """Is the metric a share, whose drops are told in points, and which drop is looked at where the user gives no limit?

        Both are known as soon as the dense model is scored.
        """

    def phase(self, name: str) -> None:
        """The next of the heading's phases begins."""

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        """Something that takes a while begins or goes on; ``total`` 0: nobody knows how far it is."""

    def waiting(self, text: str) -> None:
        """Nothing goes on, and why; an empty text: it does again."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int, left_s: float | None) -> None:
        """A trial finished; ``total`` 0: only time limits the search; ``left_s``: seconds until the whole search ends."""

    def stale(self, proposals: int, patience: int) -> None:
        """So many proposals in a row promised nothing; after ``patience`` of them the search has converged."""

    def calibrated(self, done: int, total: int) -> None:
        """So many examples of the calibration data were read."""

    def confirmed(self, done: int, total: int) -> None:
        """One part of the final measurement finished."""

    def trained(self, done: int, total: int, left_s: float, best: str) -> None:
        """So many steps of one training are done; ``best``: the best validation so far."""

    def close(self) -> None:
        """Nothing more comes."""
