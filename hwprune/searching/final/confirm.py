"""The final front: measured again in fresh processes, scored on the test split, dominated points dropped.

A front of noisy numbers is a collection of lucky ones, so nothing that the search measured is reported. Every
finalist is measured again in fresh processes (`hwprune.latency.fresh`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hwprune.common import formatting
from hwprune.errors import CandidateFailure
from hwprune.latency.bench import Bench
from hwprune.records.trial import Trial
from hwprune.searching.constraints import Constraints
from hwprune.searching.evaluating.dense import Baseline
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.final.belief import SURE, DropBelief
from hwprune.searching.final.finalists import MOST_FINALISTS, finalists, objectives, promoted
from hwprune.searching.final.point import Confirmed, final_front
from hwprune.searching.final.refining import Refiner, repairs
from hwprune.searching.final.remeasuring import FreshNumbers, remeasure
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.sampling.problem import Limits
from hwprune.searching.study.store import Store
from hwprune.workload import data_checks

ROUNDS = 2
"""Rounds of measuring: the finalists, then who took the places of those that fell."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What measuring and scoring again gave.

    Attributes:
        points: what was measured and scored.
        dense: the dense model's numbers of the same measurement.
        notes: what the user should know, in whole sentences.
    """

    points: tuple[Confirmed, ...]
    dense: Baseline
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Confirmer:
    """Measures and scores candidates whose files are there.

    Attributes:
        make: a bench with a process of its own.
        limits: of the search.
        most: how many finalists there is time for.
        measured: how many were measured again.
    """

    evaluator: Evaluator
    store: Store
    job: Job
    make: Callable[[], Bench]
    progress: Progress
    limits: Limits = field(default_factory=Limits)
    most: Callable[[], int] = lambda: MOST_FINALISTS
    measured: int = field(init=False, default=0)

    def confirm_front(self) -> Confirmation:
        """Measure and score the finalists again; ``points`` is the final front.

        Where trials had a quick compensation only, finalists are compensated once more with the inputs that the pruned network
        really gives its layers. All are checked: cut equals masked, file equals module. Then they are measured in fresh
        processes. Where that changes who is on the front, those who take the places are measured too.

        Raises:
            RunError: the dense model can't be measured again, or a cut is wrong.
        """
        constraints, dense = self.job.constraints, self.evaluator.dense.baseline
        # A finalist's thorough compensation is no yardstick for trials that have not had it.
        trials = self.store.trials(as_searched=True)
        repaired = repairs(self.evaluator, self.job, trials)
        belief = DropBelief(trials, self.limits)
        refiner = Refiner(self.evaluator, self.store, self.job, self.progress)
        done: dict[int, Confirmed] = {}
        tried: set[int] = set()
        notes: list[str] = []
        most = self.most()
        chosen = finalists(trials, constraints, belief, most, dense=dense.metric.value, repaired=repaired)
        wanted = (
            finalists(trials, constraints, belief, dense=dense.metric.value, repaired=repaired) if most < MOST_FINALISTS else ()
        )
        if len(wanted) > len(chosen):
            notes.append(f"Only {len(chosen)} of {len(wanted)} finalists were measured again, because no time was left for more.")
        if chosen and self.evaluator.workload.test is None:
            notes.append(
                "The workload has no test split: the front keeps validation scores, which selection has made optimistic."
            )
        for number in range(ROUNDS):
            if not chosen or (number and self.most() < MOST_FINALISTS):
                break
            tried |= {t.number for t in chosen}
            ready = refiner.refine(chosen)
            if ready:
                better = {t.number: t for t in ready}
                confirmation = self.confirm(ready, dense, DropBelief([better.get(t.number, t) for t in trials], self.limits))
                done |= {point.trial.number: point for point in confirmation.points}
                dense = confirmation.dense
                notes += [*refiner.take_notes(), *(note for note in confirmation.notes if note not in notes)]
            left = [t for t in trials if t.number in done or t.number not in tried]
            chosen = promoted(
                _corrected(left, done),
                set(done),
                constraints,
                belief,
                self.evaluator.dense.baseline.metric.value,
                repaired=repaired,
            )
        points = final_front(list(done.values()), constraints)
        notes += [*refiner.take_notes(), *refiner.summary(len(tried)), *self._front_notes(points, trials, tried, done)]
        return Confirmation(tuple(points), dense, tuple(notes))

    def confirm(self, chosen: Sequence[Trial], dense: Baseline, belief: DropBelief | None = None) -> Confirmation:
        """Fresh latencies and test scores of trials whose files are there; ``points`` are all that did not fail.

        Predicted and estimated latencies stay what they are: repeating them adds nothing.

        Args:
            dense: the dense model's numbers so far.
            belief: of the drops; default: each trial's own score on validation.
        """
        if not chosen:
            return Confirmation((), dense)
        self.measured += len(chosen)
        fresh = remeasure(self.evaluator, chosen, dense, self.make, self.progress)
        self.progress.stage("scoring the finalists")
        belief = belief or DropBelief(self.store.trials(), self.limits)
        return _score(self.evaluator, chosen, fresh, dense, belief, self.job.max_drop)

    def _front_notes(
        self, points: Sequence[Confirmed], trials: Sequence[Trial], tried: set[int], done: Mapping[int, Confirmed]
    ) -> list[str]:
        constraints: Constraints = self.job.constraints
        if not tried:
            return [constraints.nearest(self.store.trials(as_searched=True), _describe)]
        if not points:
            notes = ["No finalist held up when it was measured and scored again: the front is empty."]
            if constraints:
                known = [replace(t, drop=done[t.number].drop, speedup=done[t.number].speedup) for t in trials if t.number in done]
                notes.append(constraints.nearest(known or self.store.trials(as_searched=True), _describe))
            return notes
        notes = self._doubts(points)
        if len(points) < len(tried):
            return [
                *notes,
                f"{len(tried) - len(points)} of {len(tried)} finalists are not delivered: measured and scored again, another one "
                "is at least as fast and as accurate, or a limit is not met.",
            ]
        return notes

    def _doubts(self, points: Sequence[Confirmed]) -> list[str]:
        """A sentence where the limit on the drop is not surely met."""
        limit = self.job.max_drop
        unsure = [point for point in points if point.sure is not None and point.sure < SURE]
        if limit is None or not unsure:
            return []
        examples = self.evaluator.dense.validation.examples
        lowest = 100 * min(point.sure or 0.0 for point in unsure)
        return [
            f"No candidate surely has a drop of at most {limit:g}: {formatting.some(examples, 'validation example')} can't tell. "
            f"The points that scored within it meet it with a probability of at least {lowest:.0f} %."
        ]


def _score(
    evaluator: Evaluator,
    chosen: Sequence[Trial],
    fresh: FreshNumbers,
    dense: Baseline,
    belief: DropBelief,
    max_drop: float | None,
) -> Confirmation:
    """Score trials on the test split, or on validation where there is none."""
    name = "validation" if evaluator.workload.test is None else "test"
    split = evaluator.dense.validation if name == "validation" else evaluator.dense.test_split()
    dense_metric, _ = evaluator.scorer.score("dense", split)
    notes = []
    if name == "test" and (word := data_checks.apart(evaluator.metric, dense.metric, dense_metric)):
        notes.append(word)
    points = []
    for trial in chosen:
        key = str(trial.number)
        try:
            if key not in fresh.measured:
                raise CandidateFailure("measure", "it failed in a fresh process")
            evaluator.bench.load("candidate", evaluator.files.model(trial.number), threads=evaluator.scorer.threads)
            metric, outputs = evaluator.scorer.score("candidate", split)
            paired = evaluator.scorer.drop(outputs, split)
        except CandidateFailure as failure:
            notes.append(f"Trial {trial.number} left the front: {failure.reason}.")
            continue
        latency, speedup = fresh.measured[key]
        points.append(
            Confirmed(
                trial,
                metric,
                paired.value,
                latency,
                speedup,
                name,
                belief.drop(trial),
                belief.high(trial),
                None if max_drop is None else belief.sure(trial, max_drop),
                paired,
                fresh.footprints.get(key, {}),
            )
        )
    latency, speedup = fresh.measured["dense"]
    now = replace(
        dense, test_metric=dense_metric, split=name, latency=latency, self_speedup=speedup,
        footprint=fresh.footprints.get("dense", {}),
    )  # fmt: skip
    return Confirmation(tuple(points), now, tuple(notes))


def _describe(trial: Trial) -> str:
    drop, speedup = objectives(trial)
    assert trial.latency is not None and trial.size_bytes is not None
    size = f"{formatting.seconds(trial.latency.value)}, {formatting.size(trial.size_bytes)}"
    return f"trial {trial.number} with drop {drop:.4f} at {speedup:.2f}x ({size})"


def _corrected(trials: Sequence[Trial], done: Mapping[int, Confirmed]) -> list[Trial]:
    """The trials with the speedups of their last measurement. Drops stay those of validation: the test split chooses nothing."""
    return [t if t.number not in done else replace(t, speedup=done[t.number].speedup) for t in trials]
