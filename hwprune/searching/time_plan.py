"""How long a search takes: its phases, what they took the last time, and how a limit of time is divided among them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from hwprune.common.files import cache_folder, write_atomic
from hwprune.latency import fresh
from hwprune.searching.final.final_round import QUANTISING, TRAINING
from hwprune.searching.final.finalists import MOST_FINALISTS
from hwprune.searching.job import Job
from hwprune.searching.progress import Heading, Progress

LOAD, DENSE, CHOICES, PRICES, TRIALS, FINAL = (
    "load and trace the model", "measure the dense model", "prune each layer in every way", "price every choice", "search",
    "measure the front again",
)  # fmt: skip
PREPARATION = 0.4
"""Share of a limit of time after which what can be shortened of the preparation is."""
LEAST_TRIALS, LEAST_FINALISTS = 3, 3
"""Trials that a search evaluates, and finalists that it measures again, although its time is over: else it would have nothing to
deliver."""
SESSION_S, RUNS = 0.5, 60
"""Seconds of one session of the final round, and how many runs of the model it takes beside: a first guess, until a search on
this machine has told. (Six searches on two cores took 5 to 18 s a finalist, of models of 0.3 to 12 ms.)"""
FINALIST = "one finalist"
"""Kept beside the phases: seconds of the final round for each model that it measured."""
MOST_KEPT = 200
"""Searches whose times are remembered."""


def phases_of(job: Job) -> tuple[str, ...]:
    """What a search of this job does, in order."""
    more = [name for name, wanted in ((TRAINING, job.training), (QUANTISING, job.precisions)) if wanted]
    return (LOAD, DENSE, CHOICES, PRICES, TRIALS, FINAL, *more)


def finalist_seconds(dense_s: float) -> float:
    """What measuring one finalist again takes, by the latency of the dense model."""
    return fresh.PROCESSES * fresh.SESSIONS * (SESSION_S + RUNS * dense_s)


class TimePlan:
    """When the search is over, how long that may take from now, and what is left of the time for the final round.

    Args:
        finalist_s: seconds that one finalist takes in the final round.

    Attributes:
        stopped: nobody wants another trial, whatever the time.
    """

    def __init__(self, trials: int, time_s: float, started: float, finalist_s: float = 0.0) -> None:
        self._trials, self._time_s, self._started = trials, time_s, started
        self._first_trial = time.monotonic()
        self._finalist_s = finalist_s
        self._trial_s = 0.0
        self.stopped = False

    def stop(self) -> None:
        """The trial that has just finished was the last."""
        self.stopped = True

    def start_trials(self) -> None:
        """What came before the first trial took its own time, and so will the final round."""
        self._first_trial = time.monotonic()

    def final_s(self, candidates: int) -> float:
        """Seconds that the final round is expected to take with so many candidates to choose from."""
        return (1 + min(MOST_FINALISTS, candidates)) * self._finalist_s

    def over(self, done: int = 0) -> bool:
        """Would another trial leave too little of the time for the final round?

        Args:
            done: finished trials.
        """
        if not self._time_s:
            return False
        used = time.monotonic() - self._started
        return used + self._trial_s + self.final_s(done + 1) >= self._time_s

    def most_finalists(self) -> int:
        """How many finalists can be measured in what is left of the time."""
        if not self._time_s or not self._finalist_s:
            return MOST_FINALISTS
        left = self._time_s - (time.monotonic() - self._started)
        return max(LEAST_FINALISTS, min(MOST_FINALISTS, int(left / self._finalist_s) - 1))

    def seconds_left(self, done: int, evaluated: int) -> float | None:
        """Seconds until the search ends; None: nothing tells.

        Args:
            done: finished trials of all processes.
            evaluated: those of this one since `start_trials`.
        """
        now = time.monotonic()
        self._trial_s = (now - self._first_trial) / max(1, evaluated)
        by_time = self._time_s - (now - self._started) if self._time_s else None
        by_trials = self._trial_s * (self._trials - done) + self.final_s(self._trials) if self._trials else None
        known = [max(0.0, value) for value in (by_trials, by_time) if value is not None]
        return min(known) if known else None


class Times:
    """Seconds of each phase of one search; remembered for the next one like it: the same workload by name, and the same job.

    Args:
        clock: seconds.
    """

    def __init__(self, job: Job, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        known = [
            job.workload, job.target, job.space, job.trials, job.time_s, job.recover, job.quantize, job.all_patterns, job.remote,
        ]  # fmt: skip
        self._name = json.dumps(known) if job.workload else ""  # of a live object nobody knows whether it is the same
        self._progress, self._clock = progress, clock
        self._spent: dict[str, float] = {}
        self._phase, self._began = "", clock()
        self._whole = True

    def heading(self, job: Job, run: Path | None) -> Heading:
        """What the search is, with what it took the last time."""
        name = job.workload or (run.name if run else "")
        return Heading(name, job.target, phases_of(job), str(run or ""), job.max_drop, self.last())

    def last(self) -> Mapping[str, float]:
        """Seconds of each phase in the last search like this one."""
        return _remembered().get(self._name, {}) if self._name else {}

    def phase(self, name: str) -> None:
        """The next phase begins."""
        self._stop()
        self._phase = name
        self._progress.phase(name)

    def resumed(self) -> None:
        """A part was done before: what is left is no measure of a whole search."""
        self._whole = False

    def finalist_s(self, guess: float) -> float:
        """Seconds that a finalist takes in the final round: what it took the last time, or a guess."""
        return self.last().get(FINALIST, guess)

    def finish(self, finalists: int) -> None:
        """The search is over; keep what it took.

        Args:
            finalists: how many were measured again, the dense model not counted.
        """
        self._stop()
        self._phase = ""
        if finalists:
            self._spent[FINALIST] = self._spent.get(FINAL, 0.0) / (1 + finalists)
        if not self._whole or not self._name:
            return
        known = _remembered()
        known.pop(self._name, None)
        kept = dict([*known.items()][-MOST_KEPT + 1 :])
        kept[self._name] = {name: round(seconds, 2) for name, seconds in self._spent.items()}
        with contextlib.suppress(OSError):  # a cache that can't be written is no error
            write_atomic(_place(), json.dumps(kept, indent=1))

    def _stop(self) -> None:
        now = self._clock()
        if self._phase:
            self._spent[self._phase] = self._spent.get(self._phase, 0.0) + now - self._began
        self._began = now


def _place() -> Path:
    return cache_folder() / "times.json"


def _remembered() -> dict[str, dict[str, float]]:
    """Name -> phase -> seconds; what can't be read is forgotten."""
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        known = json.loads(_place().read_text(encoding="utf-8"))
        return {str(name): {str(p): float(s) for p, s in spent.items()} for name, spent in known.items()}
    return {}
