"""A bar on a terminal, plain lines elsewhere, nothing when quiet. Goes to stderr."""

from __future__ import annotations

import sys
from typing import Any, final

from hwprune.common import formatting
from hwprune.records.trial import FAILED, STOPPED, Trial
from hwprune.searching.progress import Progress


def make_progress(*, quiet: bool) -> Progress:
    """What fits the place where stderr goes."""
    if quiet:
        return Progress()
    return Bar() if sys.stderr.isatty() else Lines()


def describe(trial: Trial) -> str:
    """One line on a trial."""
    if trial.failure is not None:
        word = "stopped early" if trial.state == STOPPED else f"failed ({trial.failure.stage})"
        return f"{word}: {trial.failure.reason}"
    assert trial.speedup is not None and trial.drop is not None
    return f"{formatting.speedup(trial.speedup.value)} at drop {trial.drop:+.4f}"


@final
class Lines(Progress):
    """One line an event."""

    def stage(self, text: str) -> None:
        self._print(text)

    def note(self, text: str) -> None:
        self._print(text)

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int, left_s: float | None) -> None:
        of = f"/{total}" if total else ""
        left = f"; {formatting.duration(left_s)} to the final round" if left_s else ""
        self._print(f"[{done}{of}] trial {trial.number}: {describe(trial)}{left}")

    def trained(self, done: int, total: int, left_s: float, best: str) -> None:
        self._print(f"[{done}/{total}] training: best on validation {best}; {formatting.duration(left_s)} left")

    def _print(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


@final
class Bar(Progress):
    """A rich progress bar with the best point so far and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._console = Console(stderr=True)
        narrow = self._console.width < 70
        columns: list[Any] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12 if narrow else 24),
            TextColumn("{task.fields[count]}", markup=False),
        ]
        columns.append(TextColumn("{task.fields[left]}", markup=False))
        if not narrow:
            columns.append(TextColumn("{task.fields[best]}", markup=False))
        self._rich = RichProgress(*columns, console=self._console, transient=True)
        self._task: Any = None
        self._kind = ""

    def _show(self, kind: str, total: int) -> None:
        if self._kind != kind:
            if self._task is not None:
                self._rich.remove_task(self._task)
            self._rich.start()
            self._task = self._rich.add_task(kind, total=total or None, best="", left="", count="")
            self._kind = kind

    def stage(self, text: str) -> None:
        self._show(text, 0)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int, left_s: float | None) -> None:
        self._show("searching", total)
        if trial.state == FAILED or (best is not None and best.number == trial.number):  # what is worth scrolling back to
            self.note(f"trial {trial.number}: {describe(trial)}")
        left = f"{formatting.duration(left_s)} to the final round" if left_s is not None else ""
        best_text = f"best {describe(best)}" if best is not None else ""
        self._rich.update(self._task, completed=done, best=best_text, left=left, count=_count(done, total))

    def calibrated(self, done: int, total: int) -> None:
        self._show("reading the calibration data", total)
        self._rich.update(self._task, completed=done, count=_count(done, total))
        if done >= total:
            self._rich.remove_task(self._task)
            self._task, self._kind = None, ""

    def confirmed(self, done: int, total: int) -> None:
        self._show("measuring the front again", total)
        self._rich.update(self._task, completed=done, count=_count(done, total))

    def trained(self, done: int, total: int, left_s: float, best: str) -> None:
        self._show("training", total)
        self._rich.update(
            self._task, completed=done, best=f"best {best}", left=f"{formatting.duration(left_s)} left", count=_count(done, total)
        )
        if done >= total:
            self._rich.remove_task(self._task)
            self._task, self._kind = None, ""

    def close(self) -> None:
        self._rich.stop()


def _count(done: int, total: int) -> str:
    return f"{done}/{total}" if total else str(done)
