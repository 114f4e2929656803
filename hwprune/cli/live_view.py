"""The progress of a search on a terminal: one view that is drawn over and over, above it the lines that stay."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, final

from hwprune.cli.front_plot import FrontPlot
from hwprune.cli.progress_lines import Pace, counts_as_news, describe
from hwprune.common import formatting
from hwprune.records.trial import FAILED, STOPPED, Trial
from hwprune.searching.progress import Heading, Progress

REFRESH = 4
"""Drawings a second."""
BAR = 24
"""Width of a bar, in characters."""
TALL = 20
"""Lines of a terminal from which the front is drawn."""


@final
class LiveView(Progress):
    """Where the search is, how long it takes, the best point and the front so far.

    Args:
        verbose: whole reasons, and a line for every trial.
        clock: seconds, for what has passed.
    """

    def __init__(self, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True)
        self._verbose, self._clock = verbose, clock
        self._began = self._step_began = self._left_at = clock()
        self._heading: Heading | None = None
        self._phase, self._steps = "", 0
        self._text, self._done, self._total = "", 0, 0
        self._waiting = ""
        self._left_s: float | None = None
        self._pace = Pace(clock)
        self._stage_left: float | None = None
        self._stage_at = 0.0
        self._trials = _Trials()
        self._live = Live(
            console=self._console, transient=True, refresh_per_second=REFRESH, get_renderable=self._draw, redirect_stdout=False
        )

    # -- what is told --------------------------------------------------------------------------

    def begin(self, heading: Heading) -> None:
        self._heading = heading
        self._live.start()

    def scale(self, *, share: bool, usual: float) -> None:
        self._trials.share, self._trials.usual = share, usual

    def phase(self, name: str) -> None:
        self._steps += 1
        self._phase, self._step_began = name, self._clock()
        self.stage("")

    def stage(self, text: str, done: int = 0, total: int = 0) -> None:
        self._text, self._done, self._total = text, done, total
        self._stage_left, self._stage_at = self._pace.left(text, done, total), self._clock()
        self._live.start()

    def waiting(self, text: str) -> None:
        self._waiting = text

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def trial(self, trial: Trial, best: Trial | None, done: int, total: int, left_s: float | None) -> None:
        self._trials.add(trial, best, self._clock())
        self._left_s, self._left_at = left_s, self._clock()
        self.stage("", done, total)
        if self._verbose or counts_as_news(trial, best):  # what is worth scrolling back to
            self.note(f"trial {trial.number}: {describe(trial, share=self._trials.share, whole=self._verbose)}")

    def stale(self, proposals: int, patience: int) -> None:
        self._trials.stale = f"{proposals} of {patience} proposals in a row promise no gain" if proposals else ""

    def calibrated(self, done: int, total: int) -> None:
        self.stage("reading the calibration data", done, total)

    def confirmed(self, done: int, total: int) -> None:
        self._left_s = None
        self.stage("measuring finalists in fresh processes", done, total)

    def trained(self, done: int, total: int, left_s: float, best: str) -> None:
        self._left_s, self._left_at = left_s, self._clock()
        self.stage(f"training, best on validation {best}", done, total)

    def close(self) -> None:
        self._live.stop()

    # -- what is drawn -------------------------------------------------------------------------

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        width = self._console.width
        lines: list[tuple[str, str]] = []
        if self._heading is not None:
            lines.append((f"{self._heading.name} on {self._heading.target}", "bold"))
            lines.append((f"step {self._steps} of {len(self._heading.phases)}: {self._phase}", ""))
        lines.append((self._bar(width), ""))
        lines.append((self._times(), "dim"))
        if self._waiting:
            lines.append((self._waiting, "yellow"))
        lines += [(line, "") for line in self._trials.lines(self._heading)]
        drawn: list[Any] = [Text(_fitted(line, width), style=style, no_wrap=True) for line, style in lines if line]
        if self._trials.plot.points and self._console.height >= TALL:
            drawn.append(Text(""))
            limit = self._heading.max_drop if self._heading is not None else None
            drawn += [Text(line, no_wrap=True) for line in self._trials.plot.lines(width, limit, ascii_only=self._ascii)]
        return Group(*drawn)

    @property
    def _ascii(self) -> bool:
        return not (self._console.encoding or "").lower().startswith("utf")

    def _bar(self, width: int) -> str:
        text = self._text
        if self._total:
            size = min(BAR, max(8, width // 4))
            full = round(size * min(1.0, self._done / self._total))
            bar = ("#" if self._ascii else "━") * full + ("." if self._ascii else "╌") * (size - full)
            return f"{bar} {self._done} of {self._total} {text}"
        return f"{self._done} trials {text}".strip() if self._done else text

    def _times(self) -> str:
        now = self._clock()
        left = self._left(now)
        about = "" if left is None else f", about {formatting.duration(left)} left"
        return f"{formatting.duration(now - self._began)} elapsed{about}"

    def _left(self, now: float) -> float | None:
        """Seconds until the end, by what was told or by what the last search like this took."""
        if self._left_s is not None:
            return max(0.0, self._left_s - (now - self._left_at))
        if self._heading is None and self._stage_left is not None:
            return max(0.0, self._stage_left - (now - self._stage_at))
        if self._heading is None or not self._heading.expected or self._phase not in self._heading.phases:
            return None
        expected, phases = self._heading.expected, self._heading.phases
        rest = sum(expected.get(name, 0.0) for name in phases[phases.index(self._phase) + 1 :])
        return max(0.0, expected.get(self._phase, 0.0) - (now - self._step_began)) + rest


class _Trials:
    """What the trials so far have given."""

    def __init__(self) -> None:
        self.plot = FrontPlot()
        self.stale = ""
        self._first, self._last, self._count = 0.0, 0.0, 0
        self._failed, self._stopped = 0, 0
        self._best: Trial | None = None
        self.share, self.usual = False, 0.01

    def add(self, trial: Trial, best: Trial | None, now: float) -> None:
        self._first = self._first or now
        self._last, self._count, self._best = now, self._count + 1, best
        self._failed += trial.state == FAILED
        self._stopped += trial.state == STOPPED
        if trial.measured and trial.speedup is not None and trial.drop is not None:
            self.plot.points.append((trial.drop, trial.speedup.value))

    def lines(self, heading: Heading | None) -> list[str]:
        if not self._count:
            return []
        words = []
        if self._count > 1 and self._last > self._first:
            words.append(f"{60 * (self._count - 1) / (self._last - self._first):.0f} trials a minute")
        words += [f"{count} {word}" for count, word in ((self._failed, "failed"), (self._stopped, "stopped early")) if count]
        words += [self.stale] if self.stale else []
        limit = heading.max_drop if heading is not None and heading.max_drop is not None else self.usual
        best = describe(self._best, share=self.share) if self._best is not None else "none yet"
        allowed = formatting.drop(limit, share=self.share).removeprefix("+")
        return [", ".join(words), f"best at a drop of at most {allowed}: {best}"]


def _fitted(line: str, width: int) -> str:
    """A line of at most ``width`` characters; what is left out ends with three dots."""
    return line if len(line) <= width else line[: max(1, width - 3)] + "..."
