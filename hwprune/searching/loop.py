"""The loop that evaluates trials. The search itself runs it, and so does every worker that joins."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import optuna

from hwprune.common import formatting
from hwprune.pruning.recipe_words import described
from hwprune.records.trial import Trial
from hwprune.searching.constraints import Constraints
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.evaluating.scored import ScoredCandidate
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.sampling.samplers import UNIFORM
from hwprune.searching.sampling.search_model import SearchModel
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.study import dashboard
from hwprune.searching.study.attributes import CLOSED, PROPOSAL
from hwprune.searching.study.lease import own
from hwprune.searching.study.store import Store
from hwprune.searching.time_plan import LEAST_TRIALS, TimePlan

REPEATS = 10
"""Proposals in a row that were evaluated before, after which something random is proposed."""
PATIENCE, LEAST_TO_CONVERGE = 3, 12
"""Proposals in a row from which nothing is expected, and trials, after which a search has converged."""
WAIT_S = 0.5


@dataclass(slots=True)
class _InARow:
    """Proposals one after the other.

    Attributes:
        repeats: that were evaluated before.
        stale: from which next to nothing was expected.
    """

    repeats: int = 0
    stale: int = 0


@dataclass(slots=True)
class Work:
    """Evaluates trials of one study until it is finished.

    Attributes:
        can_time: is this process on the device? If not, it leaves latencies to those that are.
        is_main: the search itself; it waits for the trials of others, and what must be done once is its own.
        after: called after each trial of this process with all finished trials.
    """

    job: Job
    store: Store
    space: SearchSpace
    evaluator: Evaluator
    model: SearchModel
    sampler: optuna.samplers.BaseSampler
    progress: Progress
    plan: TimePlan
    is_main: bool = True
    can_time: bool = True
    after: Callable[[list[Trial]], None] = lambda _trials: None
    notes: list[str] = field(default_factory=list)
    evaluated: int = field(init=False, default=0)
    _row: _InARow = field(init=False, default_factory=_InARow)

    @property
    def constraints(self) -> Constraints:
        return self.job.constraints

    def run(self) -> list[Trial]:
        """Work until there is nothing left to do; all finished trials."""
        self.plan.start_trials()
        if self.is_main and (known := len(self.store.trials(as_searched=True))):
            wanted = f", {self.job.trials} wanted" if self.job.trials else ""
            self.progress.note(f"going on: {formatting.some(known, 'trial')} done{wanted}")
        while True:
            while self._once():
                pass
            if not self.is_main:
                break
            self._close()
            # A worker may have died over one of the last trials: it is still to be done.
            if self._finished(self.store.trials(as_searched=True)) or not self.store.waiting:
                break
        return self.store.trials()

    def _close(self) -> None:
        """Nobody starts another trial; what others have begun belongs to the search."""
        self.store.write(CLOSED, True)
        while self.store.busy():
            if self.can_time and (handed_over := self.store.handover.claim()) is not None:
                self._time(*handed_over, self.store.trials(as_searched=True))
                continue
            time.sleep(WAIT_S)
            self.store.rescue.recover(self.constraints.of)

    def _once(self) -> bool:
        """Do the next thing; False: there is none left."""
        while True:
            if again := self.store.rescue.recover(self.constraints.of):
                self.progress.note(f"interrupted and evaluated again: {formatting.some(again, 'trial')}")
            if self.can_time and (handed_over := self.store.handover.claim()) is not None:
                self._time(*handed_over, self.store.trials(as_searched=True))
                return True
            with self.store.snapshot():
                trials, busy = self.store.trials(as_searched=True), self.store.busy()
            if self._finished(trials) or (not self.is_main and self.store.read(CLOSED)):
                return False
            if self.job.trials and len(trials) + busy >= self.job.trials:
                time.sleep(WAIT_S)  # all that are wanted are being evaluated; one may die
                continue
            if self.job.sampler == UNIFORM and self.store.waiting == 0:
                self.notes.append(f"The uniform sweep is finished after {len(trials)} trials.")
                return False
            if self.is_main and self._row.stale >= PATIENCE and len(trials) >= LEAST_TO_CONVERGE:
                planned = f" of {self.job.trials}" if self.job.trials else ""
                self.notes.append(
                    f"The search converged after {len(trials)}{planned} trials: no candidate is expected to improve the front."
                )
                return False
            if not self._next(trials):
                self.notes.append(f"The search space is exhausted after {len(trials)} trials.")
                return False
            return True

    def _finished(self, trials: list[Trial]) -> bool:
        if self.job.trials and len(trials) >= self.job.trials:
            return True
        # The search keeps the time; workers go by its word that it is over.
        return self.is_main and (self.plan.stopped or (len(trials) >= LEAST_TRIALS and self.plan.over(len(trials))))

    def _next(self, trials: list[Trial]) -> bool:
        """One proposal; False if nothing new can be proposed."""
        try:
            asked = self.store.ask(self.sampler)
        except optuna.exceptions.UpdateFinishedTrialError:
            return True  # it took so long to propose that another worker took this one for dead
        recipe = self.space.recipe(asked.params)
        with self.store.snapshot():
            late = self.job.trials and self.store.ahead(asked) >= self.job.trials
            other = self.store.rescue.superseded(asked)
            earlier = other if other is not None else self.store.known(asked, recipe) or self._dense_trial(recipe, asked.number)
        if late:
            self.store.rescue.interrupt(asked)  # others were quicker to ask for the last one
            return True
        if earlier is not None:
            known = earlier if isinstance(earlier, Trial) else None
            self.store.finisher.tell_duplicate(asked, earlier, self.constraints.of(known) if known else {})
            self._row.repeats += 1
            if self._row.repeats >= REPEATS and self.job.sampler != UNIFORM:
                return self._enqueue_unseen({trial.recipe.digest for trial in trials})
            return True
        self._row.repeats = 0
        why = self.store.study._storage.get_trial_system_attrs(asked._trial_id).get(PROPOSAL, {})
        self._row.stale = self._row.stale + 1 if why.get("converged") else 0
        self.progress.stale(self._row.stale, PATIENCE)
        expected = self.model.expectation(self.store.study, asked, trials, self.job.max_size)
        origin = self.store.origin(asked, self.job.sampler)
        asked.set_user_attr(
            dashboard.CUT, described(recipe.choices, self.evaluator.pruner.units)
        )  # for whoever looks at the study
        try:
            with self.store.holding(asked):
                scored = self.evaluator.score(asked.number, recipe, origin, expected)
                if isinstance(scored, ScoredCandidate) and not self.can_time:
                    self.store.handover.hand_over(asked, {**scored.to_json(), "by": own()})
                    self.evaluated += 1
                    return True
                trial = self.evaluator.measure(scored, expected) if isinstance(scored, ScoredCandidate) else scored
        except BaseException:
            self.store.rescue.interrupt(asked)
            raise
        self._tell(asked, trial, trials)
        return True

    def _time(self, asked: optuna.Trial, data: Mapping[str, Any], trials: list[Trial]) -> None:
        """Measure the latency of a candidate that another worker has made and scored."""
        scored = ScoredCandidate.from_json(asked.number, data)
        try:
            with self.store.holding(asked):
                expected = self.model.expectation(self.store.study, asked, trials, self.job.max_size)
                trial = self.evaluator.measure(scored, expected)
        except BaseException:
            self.store.handover.hand_over(asked, {**data, "by": own()})  # whoever comes next times it
            raise
        self._tell(asked, trial, trials)

    def _tell(self, asked: optuna.Trial, trial: Trial, trials: list[Trial]) -> None:
        whole = max(1, self.evaluator.dense.validation.examples)
        share = min(1.0, trial.divergence.samples / whole) if trial.divergence is not None else 1.0
        known = self.store.known(asked, trial.recipe)
        if isinstance(known, Trial):  # two workers proposed it at the same moment
            self.store.finisher.tell_duplicate(asked, known, self.constraints.of(known))
            return
        dense_bytes = self.evaluator.dense.baseline.size_bytes
        if not self.store.finisher.tell(asked, trial, self.constraints.of(trial), share, dense_bytes):
            self.progress.note(f"trial {asked.number}: another worker has finished it meanwhile")
            return
        self.evaluated += 1
        done = [*trials, trial]
        self.progress.trial(
            trial, self._best(done), len(done), self.job.trials, self.plan.seconds_left(len(done), self.evaluated)
        )
        self.after(done)

    def _dense_trial(self, recipe: Any, number: int) -> Trial | None:
        """The dense recipe needs no trial: it is the baseline."""
        if recipe.choices:
            return None
        base = self.evaluator.dense.baseline
        one = replace(base.self_speedup, value=1.0, ci_low=1.0, ci_high=1.0)
        return Trial(number, recipe, "measured", base.metric, 0.0, base.latency, one, base.params, base.macs, base.size_bytes)

    def _enqueue_unseen(self, known: set[str]) -> bool:
        """Propose a random recipe that was not evaluated yet; False if none was found in 1,000 draws."""
        self._row.repeats = 0
        draw = random.Random(f"{self.job.seed} {len(known)}")
        for _ in range(1000):
            parameters = self.space.draw(draw)
            recipe = self.space.recipe(parameters)
            if recipe.choices and recipe.digest not in known:
                self.store.enqueue(parameters, "random")
                return True
        return False

    def _best(self, done: list[Trial]) -> Trial | None:
        """The fastest trial within ``max_drop`` (or the usual limit), for those who watch."""
        dense = self.evaluator.dense.baseline.metric.value
        share = formatting.is_share(dense, higher_is_better=self.evaluator.metric.higher_is_better)
        limit = self.job.max_drop if self.job.max_drop is not None else formatting.usual_limit(dense, share=share)
        good = [t for t in done if t.measured and t.drop is not None and t.drop <= limit]
        return max(good, key=lambda t: t.speedup.value if t.speedup else 0.0, default=None)
