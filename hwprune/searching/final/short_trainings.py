"""Short trainings: what a tenth of the training brings back tells where the search should look, and who gets all of it.

A candidate that has lost thirty points at once may lose two when it has been trained, and another one may not. So where finalists
are trained, the drop that the search predicts is that of trained candidates: a few trials are trained for a while as soon as
there are some, and again later, and the curve from divergence to drop is fitted to them alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hwprune.errors import CandidateFailure, HwpruneError
from hwprune.pruning.candidate import Candidate
from hwprune.records import pareto
from hwprune.records.trial import Trial
from hwprune.recovery.loop.run import search_rate
from hwprune.recovery.plan import Plan, shorter
from hwprune.recovery.recover import recover
from hwprune.recovery.sparsifiers.base import FixedMask
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.final.belief import DropBelief
from hwprune.searching.final.finalists import rank_objectives
from hwprune.searching.progress import Progress
from hwprune.searching.sampling.problem import Limits
from hwprune.searching.study.attributes import TRAINED_DROPS
from hwprune.searching.study.store import Store

SHORT = 0.1
"""Share of the training's epochs."""
MILESTONES = (8, 20, 32)
"""Trials after which candidates are trained for a while."""
AT_ONCE = 3
"""How many then."""
NEAR, FAR = 0.2, 6.0
"""Believed drop over the worst one that matters between which a short training teaches something."""
LEAST = 2
"""Short trainings from which on the search goes by them."""
FAILURES = (HwpruneError, RuntimeError, OSError)
"""What may go wrong in one candidate's training: no memory left, a full disk, a loss that can't be followed. The others go on."""
FAILED = "training failed"
"""Attribute of the study, with the plan: trial -> why it could not be trained."""
WASTED = "training without result, s"
"""Attribute of the study, with the plan: seconds of trainings that no candidate came of."""
RATE = "training rate"
"""Attribute of the study, with the plan: the learning rate of all trainings, where the plan says none."""
SHORT_TRAINING = "short training"
"""Attribute of the study, with the plan: trial -> metric on validation after the short training."""


class ShortTrainings:
    """Trains candidates for a while; what came of it is kept in the study.

    Attributes:
        rated: the plan with the learning rate of all trainings, once `choose_rate` was called.
        failures: trial -> why it could not be trained; a search that is resumed does not try again.
        passing: the same for reasons that may be gone when the search is resumed.
        wasted: seconds of training that no candidate came of.
    """

    def __init__(self, evaluator: Evaluator, store: Store, plan: Plan, progress: Progress) -> None:
        self.evaluator, self.store, self.plan, self.progress = evaluator, store, plan, progress
        # Of another plan nothing is known: a run may be resumed with more epochs.
        self._short_key, self._rate_key = f"{SHORT_TRAINING} {plan.text()}", f"{RATE} {plan.text()}"
        self._failed_key, self._wasted_key = f"{FAILED} {plan.text()}", f"{WASTED} {plan.text()}"
        self._taught_key = f"{TRAINED_DROPS} {plan.text()}"
        self.rated = plan
        self.failures: dict[str, str] = dict(store.read(self._failed_key) or {})
        self.passing: dict[str, str] = {}
        self.wasted = float(store.read(self._wasted_key) or 0.0)
        self._metrics: dict[str, float] = dict(store.read(self._short_key) or {})

    @classmethod
    def of_search(cls, evaluator: Evaluator, store: Store, plan: Plan | None, progress: Progress) -> ShortTrainings | None:
        """Those of a search that begins or is resumed; None: it trains nobody. What another plan has taught is put aside."""
        if plan is not None:
            found = cls(evaluator, store, plan, progress)
            told = store.read(found._taught_key) or {}
        else:
            found, told = None, {}
        if told != (store.read(TRAINED_DROPS) or {}):
            store.write(TRAINED_DROPS, told)
        return found

    def after_trial(self, trials: Sequence[Trial], limits: Limits) -> None:
        """Train a few trials for a while if there are enough new ones; from then on the search goes by what came of them.

        Args:
            trials: as they were searched.
            limits: of the search.
        """
        due = sum(len(trials) >= milestone for milestone in MILESTONES) * AT_ONCE
        wanted = min(due - len(self._metrics) - len(self.failures), AT_ONCE)
        if self.plan.kind == "gradual" or wanted <= 0:  # a gradual plan prunes anew: a short one says nothing of a long one
            return
        chosen = to_probe(trials, self.taught, limits, wanted, {*self._metrics, *self.failures, *self.passing})
        if not chosen:
            return
        self.choose_rate(chosen)
        for place, trial in enumerate(chosen):
            which = f"trial {trial.number}, {place + 1} of {len(chosen)}"
            self.metric(trial, f"training for a while, to learn what training brings ({which})")
        self.publish(trials)

    def publish(self, trials: Sequence[Trial]) -> None:
        """Let samplers know; with too few of them they go by what trials have without any training."""
        found = self.drops(trials)
        if len(found) >= LEAST:
            told = {str(number): pair for number, pair in found.items()}
            self.store.write(self._taught_key, told)
            self.store.write(TRAINED_DROPS, told)

    @property
    def taught(self) -> dict[int, tuple[float, float | None]]:
        """What the search goes by: `drops` when it learned last.

        What the final round trains for a while comes too late for it: a finished search that is resumed must choose as it did.
        """
        return {int(number): (drop, error) for number, (drop, error) in (self.store.read(self._taught_key) or {}).items()}

    def drops(self, trials: Sequence[Trial]) -> dict[int, tuple[float, float | None]]:
        """Trial -> (drop after its short training, standard error). The error is that of its drop before."""
        dense = self.evaluator.dense.baseline.metric.value
        return {
            t.number: (self.evaluator.metric.drop(dense, self._metrics[str(t.number)]), t.evidence[1])
            for t in trials if str(t.number) in self._metrics
        }  # fmt: skip

    def choose_rate(self, chosen: Sequence[Trial]) -> None:
        """One learning rate for all, by short trials with the one in the middle: short trainings are compared with each other."""
        if self.plan.rate is not None or self.plan.kind == "gradual":  # which looks at what it removes itself
            return
        rate = self.store.read(self._rate_key)
        if rate is None:
            self.progress.stage("looking for a learning rate")
            pruner = self.evaluator.pruner
            candidate = self.candidate(chosen[len(chosen) // 2])
            held = FixedMask(candidate.masks) if candidate.masks else None
            start = time.monotonic()
            try:
                rate = search_rate(
                    candidate.module, pruner.workload, self.plan, held, pruner.graph.module if self.plan.taught else None
                )
            except FAILURES:  # the trainings themselves will say what is wrong
                return
            self.waste(time.monotonic() - start)
            self.store.write(self._rate_key, rate)
        self.rated = replace(self.plan, rate=float(rate))

    def metric(self, trial: Trial, stage: str) -> float | None:
        """The metric on validation after the short training; None if the trial can't be trained."""
        key = str(trial.number)
        if key not in self._metrics:
            self.progress.stage(stage)
            try:
                made = recover(self.evaluator.pruner, self.candidate(trial), shorter(self.rated, SHORT))
            except FAILURES as failure:
                self.failed(trial, failure)
                return None
            self.waste(made.seconds)
            self._metrics[key] = made.outcome.after.value
            self.store.write(self._short_key, self._metrics)
        return self._metrics[key]

    def failed(self, trial: Trial, failure: Exception) -> None:
        """Told; what lies in the candidate is remembered, and not tried again when the search is resumed. A full disk is."""
        if isinstance(failure, CandidateFailure):
            self.failures[str(trial.number)] = failure.reason
            self.store.write(self._failed_key, self.failures)
        else:
            self.passing[str(trial.number)] = f"{type(failure).__name__}: {failure}"

    def waste(self, seconds: float) -> None:
        """Count seconds of a training that no candidate comes of."""
        self.wasted += seconds
        self.store.write(self._wasted_key, self.wasted)

    def candidate(self, trial: Trial) -> Candidate:
        """As the search left it: a finalist's thorough compensation included, where it has one."""
        newest = next((t for t in self.store.trials() if t.number == trial.number), trial)
        return self.evaluator.pruner.prune(newest.recipe)


def to_probe(
    trials: Sequence[Trial],
    trained: Mapping[int, tuple[float, float | None]],
    limits: Limits,
    count: int,
    done: set[str],
) -> list[Trial]:
    """Which trials teach most of what training brings: of the front in (divergence, speedup), evenly over log divergence.

    Args:
        trained: drops after training so far.
        done: numbers of the trials that were trained, or could not be.
    """
    good = [t for t in trials if t.measured and t.divergence is not None and t.recipe.choices and rank_objectives(t)[1] > 1]
    front = pareto.non_dominated(good, rank_objectives)
    belief = DropBelief(good, limits, trained if len(trained) >= LEAST else None)
    worst = limits.reference[0]
    left = [t for t in front if str(t.number) not in done and NEAR * worst <= belief.drop(t) <= FAR * worst]
    left.sort(key=lambda t: rank_objectives(t)[0])
    if len(left) <= count:
        return left
    logs = [math.log(max(rank_objectives(t)[0], 1e-9)) for t in left]
    chosen: list[Trial] = []
    for target in np.linspace(logs[0], logs[-1], count):
        rest = [place for place, t in enumerate(left) if t not in chosen]
        chosen.append(left[min(rest, key=lambda place: abs(logs[place] - target))])
    return sorted(chosen, key=lambda t: rank_objectives(t)[0])
