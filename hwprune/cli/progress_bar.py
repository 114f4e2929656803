"""How progress is told: drawn on a terminal, as short lines elsewhere, not at all when quiet. Goes to stderr.

A search also writes all of it, with the time, to ``search.log`` in its run directory.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import final

from hwprune.cli.live_view import LiveView
from hwprune.cli.progress_lines import Lines
from hwprune.records.trial import Trial
from hwprune.searching.progress import Heading, Progress

LOG = "search.log"
"""In the run directory."""


def make_progress(*, quiet: bool = False, verbose: bool = False) -> Progress:
    """What fits the place where stderr goes.

    Args:
        verbose: every stage, and whole reasons.
    """
    drawn: Progress
    if quiet:
        drawn = Progress()
    elif sys.stderr.isatty():
        drawn = LiveView(verbose=verbose)
    else:
        drawn = Lines(sys.stderr, verbose=verbose)
    return Several([drawn, LogFile()])


@final
class LogFile(Lines):
    """All that is told, with the time, in the run directory. It begins when the directory is known."""

    def __init__(self) -> None:
        super().__init__(None, verbose=True)
        self._before: list[str] = []

    def begin(self, heading: Heading) -> None:
        super().begin(heading)
        if self._stream is None and heading.run and Path(heading.run).is_dir():
            try:
                self._stream = (Path(heading.run) / LOG).open("a", encoding="utf-8")
            except OSError:  # the run itself will say that the folder can't be written
                return
            for line in self._before:
                self._stream.write(line)
            self._before.clear()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _print(self, text: str) -> None:
        line = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {text}\n"
        if self._stream is None:
            self._before.append(line)
            return
        self._stream.write(line)
        self._stream.flush()


@final
class Several(Progress):
    """Tells several."""

    def __init__(self, parts: Sequence[Progress]) -> None:
        self.parts = parts

    def begin(self, heading: Heading) -> None:
        for part in self.parts:
            part.begin(heading)

    def scale(self, *, share: bool, usual: float) -> None:
        for part in self.parts:
            part.scale(share=share, usual=usual)

    def phase(self, name: str) -> None:
        for part in self.parts:
            part.phase(name)

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        for part in self.parts:
            part.stage(text, done, total)

    def waiting(self, text: str) -> None:
        for part in self.parts:
            part.waiting(text)

    def note(self, text: str) -> None:
        for part in self.parts:
            part.note(text)

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int, left_s: float | None) -> None:
        for part in self.parts:
            part.trial(trial, best, done, total, left_s)

    def stale(self, proposals: int, patience: int) -> None:
        for part in self.parts:
            part.stale(proposals, patience)

    def calibrated(self, done: int, total: int) -> None:
        for part in self.parts:
            part.calibrated(done, total)

    def confirmed(self, done: int, total: int) -> None:
        for part in self.parts:
            part.confirmed(done, total)

    def trained(self, done: int, total: int, left_s: float, best: str) -> None:
        for part in self.parts:
            part.trained(done, total, left_s, best)

    def close(self) -> None:
        for part in self.parts:
            part.close()
