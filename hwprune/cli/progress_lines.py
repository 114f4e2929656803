"""Progress as short lines, for files and pipes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from hwprune.common import formatting
from hwprune.records.trial import FAILED, STOPPED, Trial
from hwprune.searching.progress import Heading, Progress

WORTH_TELLING_S = 5.0
"""Seconds left that are worth a word."""
QUARTERS = 4
"""Lines that one long stage takes at most, where lines can't be drawn over."""


def describe(trial: Trial, *, share: bool, whole: bool = False) -> str:
    """One line on a trial.

    Args:
        share: drops are told in points.
        whole: with all of the reason of one that was stopped.
    """
    if trial.failure is not None:
        if trial.state == STOPPED:
            reason = trial.failure.reason
            return f"stopped early: {reason}" if whole else f"stopped early ({reason.partition(':')[0]})"
        return f"failed ({trial.failure.stage}): {trial.failure.reason}"
    assert trial.speedup is not None and trial.drop is not None
    return f"{formatting.speedup(trial.speedup.value)} at a drop of {formatting.drop(trial.drop, share=share)}"


class Pace:
    """How long a stage of known length still takes, at the pace it has had so far.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._text, self._first, self._began = "", 0, 0.0

    def left(self, text: str, done: int, total: int) -> float | None:
        """Seconds, once a part of it is done since it began here; it may have been begun by a process that was killed."""
        if text != self._text or done < self._first:
            self._text, self._first, self._began = text, done, self._clock()
        if not total or done <= self._first:
            return None
        return (self._clock() - self._began) / (done - self._first) * (total - done)


class Lines(Progress):
    """One short line an event.

    Args:
        stream: None: there is none yet, and what is told is lost.
        clock: seconds, for the time that is left.
    """

    def __init__(self, stream: TextIO | None, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._verbose = stream, verbose
        self._pace = Pace(clock)
        self._heading: Heading | None = None
        self._steps = 0
        self._share = False
        self._told: tuple[str, int] = ("", 0)

    def begin(self, heading: Heading) -> None:
        if self._heading is None and heading.expected:
            seconds = sum(heading.expected.get(name, 0.0) for name in heading.phases)
            self.note(f"the last search like this took {formatting.duration(seconds)}")
        self._heading = heading

    def scale(self, *, share: bool, usual: float) -> None:
        self._share = share

    def phase(self, name: str) -> None:
        self._steps += 1
        total = len(self._heading.phases) if self._heading is not None else 0
        self._print(f"step {self._steps}/{total}: {name}")

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        quarter, left = QUARTERS * done // total if total else 0, self._pace.left(text, done, total)
        if (text, quarter) == self._told or not (self._verbose or self._heading is None):
            return
        self._told = text, quarter
        more = f", about {formatting.duration(left)} left" if left and left >= WORTH_TELLING_S else ""
        self._print(f"{text} ({done} of {total}{more})" if total and done else text)

    def waiting(self, text: str) -> None:
        if text:
            self._print(text)

    def note(self, text: str) -> None:
        self._print(text)

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int, left_s: float | None) -> None:
        of = f"/{total}" if total else ""
        left = f" ({formatting.duration(left_s)} left)" if left_s else ""
        self._print(f"[{done}{of}] trial {trial.number}: {describe(trial, share=self._share, whole=self._verbose)}{left}")

    def trained(self, done: int, total: int, left_s: float, best: str) -> None:
        self._print(f"[{done}/{total}] training: best on validation {best} ({formatting.duration(left_s)} left)")

    def _print(self, text: str) -> None:
        if self._stream is not None:
            print(text, file=self._stream, flush=True)


def counts_as_news(trial: Trial, best: Trial | None) -> bool:
    """Is a trial worth a line that stays: the best so far, or one that failed?"""
    return trial.state == FAILED or (best is not None and best.number == trial.number)
