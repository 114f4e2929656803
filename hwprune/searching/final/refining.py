"""Finalists made more thoroughly than trials, where a thorough compensation takes too long to be in every trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hwprune import compensation, patterns
from hwprune.common import formatting
from hwprune.errors import CandidateFailure
from hwprune.records.trial import Trial
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.study.store import Store


@dataclass(slots=True)
class Refiner:
    """Compensates finalists with the pruned network's own inputs where that brings them closer to dense."""

    evaluator: Evaluator
    store: Store
    job: Job
    progress: Progress
    _improved: list[tuple[float, Trial, Trial]] = field(default_factory=list)
    """(divergence after / before, trial before, trial after)"""
    _notes: list[str] = field(default_factory=list)

    def refine(self, chosen: Sequence[Trial]) -> list[Trial]:
        """The finalists with all their files; those that can't be made again are left out."""
        ready = []
        for place, trial in enumerate(chosen):
            final = self._compensate(trial, f"compensating finalist {place + 1} of {len(chosen)} with its own inputs")
            try:
                self.evaluator.check_exact(final)
                self.evaluator.files.ensure(final, weights=True)
            except CandidateFailure as failure:
                self._notes.append(f"Trial {trial.number} left the front: it can't be made again ({failure.reason}).")
                continue
            ready.append(final)
        return ready

    def _compensate(self, trial: Trial, stage: str) -> Trial:
        wanted = _thorough(self.evaluator, trial, self.job)
        if wanted is None:
            return trial
        self.progress.stage(stage)
        try:
            better = self.evaluator.refine(trial, wanted)
        except CandidateFailure as failure:
            self._notes.append(f"Trial {trial.number} keeps its quick compensation; the thorough one failed: {failure.reason}.")
            return trial
        if better is None:
            return trial
        if better.divergence is not None and trial.divergence is not None:
            self.store.save_refined(better)
            self._improved.append((better.divergence.value / trial.divergence.value, trial, better))
            self.progress.note(f"trial {trial.number}: {_change(trial, better, self.evaluator)} on validation")
        return better

    def take_notes(self) -> list[str]:
        """The notes since this was called last."""
        notes, self._notes = self._notes, []
        return notes

    def summary(self, tried: int) -> list[str]:
        """A sentence on what the compensation brought; none where it brought nothing."""
        if not self._improved:
            return []
        ratios = sorted(ratio for ratio, _, _ in self._improved)
        _, before, after = max(self._improved, key=lambda row: abs((row[1].drop or 0.0) - (row[2].drop or 0.0)))
        return [
            f"{len(self._improved)} of {tried} finalists were compensated with their own inputs (sequential), which repairs more "
            f"than trials get during the search: their divergence from dense fell to {100 * ratios[len(ratios) // 2]:.0f} % of "
            f"what it was (median). It changed trial {before.number} most: {_change(before, after, self.evaluator)} on "
            "validation."
        ]


def repairs(evaluator: Evaluator, job: Job, trials: Sequence[Trial]) -> bool:
    """Do finalists get a more thorough compensation than other trials? Where it would take too long in each of them."""
    thorough = any(compensation.is_sequential(t.recipe.compensation) for t in trials if t.searched)
    return job.repaired and not evaluator.pruner.untraceable and not thorough


def _thorough(evaluator: Evaluator, trial: Trial, job: Job) -> str | None:
    """The compensation of a finalist, if it is another one than the trial's; what the user has asked for is kept."""
    names = trial.recipe.compensation.split("+")
    if not job.repaired or evaluator.pruner.untraceable or compensation.SEQUENTIAL in names:
        return None
    if not any(choice.pattern != patterns.BRANCH for choice in trial.recipe.choices):
        return None  # branches alone leave no layer to solve for
    return "+".join([*(name for name in names if name != compensation.NONE), compensation.SEQUENTIAL])


def _change(before: Trial, after: Trial, evaluator: Evaluator) -> str:
    first, last = before.drop or 0.0, after.drop or 0.0
    dense = before.metric.value + first if before.metric is not None else -1.0
    share = formatting.is_share(dense, higher_is_better=evaluator.metric.higher_is_better)
    return f"a drop of {formatting.drop(first, share=share)} became {formatting.drop(last, share=share)}"
