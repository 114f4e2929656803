"""What a search tells while it runs; the command line draws it."""

from __future__ import annotations

from hwprune.records.trial import Trial


class Progress:
    """Does nothing; callers pass a subclass that does. Not abstract: silence is a use."""

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int, left_s: float | None) -> None:
        """A trial finished; ``total`` 0: only time limits the search."""

    def calibrated(self, done: int, total: int) -> None:
        """So many examples of the calibration data were read."""

    def confirmed(self, done: int, total: int) -> None:
        """One part of the final measurement finished."""

    def trained(self, done: int, total: int, left_s: float, best: str) -> None:
        """So many steps of one training are done; ``best``: the best validation so far."""

    def close(self) -> None:
        """Nothing more comes."""
