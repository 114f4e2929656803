"""The dense model against copies of itself, while the search runs: is the machine still quiet enough to rank by?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hwprune.common import formatting
from hwprune.errors import CandidateFailure, RunError
from hwprune.latency.source import Measured
from hwprune.records.measurement import Measurement
from hwprune.records.trial import Trial

if TYPE_CHECKING:
    from hwprune.searching.evaluating.evaluator import Evaluator
    from hwprune.searching.study.store import Store

EVERY = 50
"""Trials between two measurements of the dense model against itself."""


class SelfCheck:
    """Repeats the gate every `EVERY` trials of this process.

    Attributes:
        results: of all checks, for the record.
        notes: what the user should know of those that failed.
    """

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._trials = 0

    def first(self, speedup: Measurement) -> None:
        """Take up what the dense model measured before the first trial."""
        self._add(speedup, 0, passed=bool(speedup.conditions.get("passed", True)))

    def after_trial(self, evaluator: Evaluator, store: Store, done: list[Trial]) -> list[Trial]:
        """Where the gate fails, what was measured since the last one is measured again, as far as its files are there.

        Returns:
            The finished trials, with what was measured again.

        Raises:
            RunError: the dense model can't be measured any more.
        """
        self._trials += 1
        source = evaluator.source
        if self._trials % EVERY or not isinstance(source, Measured):
            return done
        try:
            gate = source.gate()
        except CandidateFailure as failure:
            raise RunError(f"the dense model can't be measured against itself any more: {failure.reason}") from failure
        if self._add(gate.speedup, len(done), passed=bool(gate.passed)):
            return done
        again = 0
        for trial in done[-EVERY:]:
            if trial.measured and (paired := evaluator.measure_again(trial)) is not None:
                store.save_remeasured(trial.number, paired.speedup, paired.latency)
                again += 1
        self.notes.append(f"{again} candidates of that time were measured again.")
        return store.trials()

    def _add(self, speedup: Measurement, done: int, *, passed: bool) -> bool:
        result = {
            "trials": done, "value": speedup.value, "ci_low": speedup.ci_low, "ci_high": speedup.ci_high, "passed": passed,
        }  # fmt: skip
        self.results.append(result)
        if not passed:
            when = f"After {formatting.some(done, 'trial')}" if done else "Before the first trial"
            self.notes.append(
                f"{when} the dense model measured {speedup.value:.3f}x [{speedup.ci_low:.3f}, {speedup.ci_high:.3f}] against "
                "copies of itself: the machine is noisy, and speedups of the search that differ by less than this can't be told "
                "apart. The final front is measured again."
            )
        return passed
