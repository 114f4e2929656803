"""Recovery training of the finalists: who is trained, what comes of it.

One-shot pruning says what is possible; a little training makes it shippable, and it may make shippable what had lost too much.
So more finalists than usual are looked at, faster ones too; all of them get a tenth of the training (`short_trainings`, which the
search itself has begun), and those on the front after that get all of it (training-aware selection; DarwinLM, Tang et al. 2025,
arXiv 2502.07780).

A trained candidate is a trial of its own, with files of its own: both regimes can be deployed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hwprune.common.files import dump_json, write_atomic
from hwprune.errors import CandidateFailure
from hwprune.onnx_files import to_onnx
from hwprune.patterns import BRANCH
from hwprune.records import pareto
from hwprune.records.recipe import Recipe
from hwprune.records.trial import Trial
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import Recovered, prune_gradually, recover
from hwprune.searching.constraints import Constraints
from hwprune.searching.evaluating.candidate_files import TRAINING, size_of
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.final.belief import DropBelief
from hwprune.searching.final.finalists import FINE, finalists, objectives, spread
from hwprune.searching.final.point import DerivedTrials
from hwprune.searching.final.short_trainings import FAILURES, LEAST, ShortTrainings
from hwprune.searching.progress import Progress
from hwprune.searching.sampling.problem import Limits
from hwprune.searching.study.store import Store

LOOKED_AT = 10
"""Finalists that get the short training."""
TRAINED = 5
"""Finalists that get all of it."""
REACH = 8.0
"""Drop before training over the largest one that is wanted, up to which a candidate is looked at."""
FARTHEST = 0.35
"""The farthest drop as a share of the dense metric, where no largest drop is wanted."""
FILE = "recovery.json"
WITHOUT_GAIN = "trained without gain"
"""Attribute of the study, with the plan: trials that validation did not find better after their training."""


def train_finalists(
    evaluator: Evaluator, store: Store, plan: Plan, constraints: Constraints, progress: Progress, limits: Limits | None = None
) -> DerivedTrials:
    """Trials of trained candidates with their files, better on validation than before their training; not measured anew.

    Args:
        limits: of the search, for drops after a short training.
    """
    trainer = _Trainer(evaluator, store, plan, constraints, progress)
    short = trainer.short
    # A quantised form of a trained trial remembers its training too, and is not it.
    trained = [t for t in store.trials() if t.recovery and not t.quantised]
    known = {int(t.recovery["of"]): t for t in trained if t.recovery["plan"] == plan.to_json()}
    chosen = _looked_at(store.trials(as_searched=True), constraints, evaluator, short, limits)
    if not chosen:
        return DerivedTrials([], ["No candidate is near enough to dense to be trained."])
    short.choose_rate(chosen)
    chosen = [trial for trial in chosen if str(trial.number) not in short.failures]
    if plan.kind == "gradual":
        chosen = [trial for trial in chosen if any(c.pattern != BRANCH for c in trial.recipe.choices)][:TRAINED]
    elif len(chosen) > TRAINED:
        chosen = trainer.select(chosen)
    found = []
    for place, trial in enumerate(chosen):
        progress.stage(f"training finalist {place + 1} of {len(chosen)} (trial {trial.number}, {plan.text()})")
        done = known.get(trial.number)
        if trial.number in trainer.without_gain:
            continue
        if done is None:
            done = trainer.train(trial)
        elif not trainer.has_files(done):
            continue  # it was not on the front when this search ended before
        if done is not None:
            found.append(done)
    notes = [f"Trial {number} could not be trained: {reason}." for number, reason in (short.failures | short.passing).items()]
    cost = sum(float(t.recovery["seconds"]) for t in found) + short.wasted
    if trainer.without_gain:
        listed = ", ".join(map(str, trainer.without_gain))
        notes.append(f"Trained without gain on validation, so left as they were: {listed}.")
    notes.append(
        f"{len(found)} of {len(chosen)} finalists are better on validation after {plan.text()}; training took {cost:.0f} s."
    )
    return DerivedTrials(found, notes)


def _looked_at(
    trials: Sequence[Trial], constraints: Constraints, evaluator: Evaluator, short: ShortTrainings, limits: Limits | None
) -> list[Trial]:
    """The front and what is just behind it, as far as training may bring it back; by short trainings, if there were any."""
    free = replace(constraints, max_drop=None)
    trained = short.taught
    if limits is not None and len(trained) >= LEAST:
        return finalists(trials, free, DropBelief(trials, limits, trained), LOOKED_AT, evaluator.dense.baseline.metric.value)
    dense = abs(evaluator.dense.baseline.metric.value)
    farthest = FARTHEST * dense if constraints.max_drop is None else max(REACH * constraints.max_drop, 0.02 * dense)
    near = [t for t in trials if not t.measured or (t.drop is not None and t.drop <= farthest)]
    belief = DropBelief(trials, Limits(reference_drop=farthest))
    return finalists(near, free, belief, LOOKED_AT, dense)


class _Trainer:
    def __init__(self, evaluator: Evaluator, store: Store, plan: Plan, constraints: Constraints, progress: Progress) -> None:
        self.evaluator, self.store, self.plan, self.constraints, self.progress = evaluator, store, plan, constraints, progress
        self.short = ShortTrainings(evaluator, store, plan, progress)
        self._gain_key = f"{WITHOUT_GAIN} {plan.text()}"  # of another plan nothing is known
        self.without_gain: list[int] = list(store.read(self._gain_key) or [])

    def select(self, chosen: Sequence[Trial]) -> list[Trial]:
        """After a short training: the front by (drop, speedup), spread over the speedup; then who is just behind it."""
        for place, trial in enumerate(chosen):
            self.short.metric(trial, f"training finalist {place + 1} of {len(chosen)} for a while, to choose who is trained")
        drops = self.short.drops(chosen)
        scored = [trial for trial in chosen if trial.number in drops]
        best: list[Trial] = []
        for layer in pareto.layers(scored, lambda trial: (drops[trial.number][0], objectives(trial)[1])):
            best = spread(best, layer, TRAINED, FINE)
            if len(best) >= TRAINED:
                break
        return sorted(best, key=lambda trial: objectives(trial)[1])

    def has_files(self, trial: Trial) -> bool:
        folder = self.evaluator.files.folder(trial.number)
        return self.evaluator.files.model(trial.number).is_file() and (folder / "model.safetensors").is_file()

    def train(self, trial: Trial) -> Trial | None:
        """Train one candidate whole; None if it can't be, or is no better for it."""
        checkpoints = self.evaluator.run / "candidates" / f"{trial.number}.{TRAINING}"
        try:
            if self.plan.kind == "gradual":
                made = prune_gradually(
                    self.evaluator.pruner, trial.recipe, self.plan, folder=checkpoints, keep_checkpoint=True, report=self._report
                )
            else:
                made = recover(
                    self.evaluator.pruner, self.short.candidate(trial), self.short.rated, folder=checkpoints,
                    keep_checkpoint=True, report=self._report,
                )  # fmt: skip
            found = self._finish(trial, made)
        except FAILURES as failure:  # Ctrl-C goes past this: what was trained so far is still to be used
            self.short.failed(trial, failure)
            found = None
            if not isinstance(failure, CandidateFailure):
                return None
        shutil.rmtree(checkpoints, ignore_errors=True)  # not before the result is stored
        return found

    def _report(self, done: int, total: int, left_s: float, best: Any) -> None:
        self.progress.trained(done, total, left_s, f"{best.value:.4f} {best.unit}")

    def _finish(self, trial: Trial, made: Recovered) -> Trial | None:
        """Write, score and keep a trained candidate; it gets a number only if it is better on validation."""
        evaluator = self.evaluator
        before = next((t for t in self.store.trials() if t.number == trial.number), trial)
        assert before.metric is not None
        scratch = evaluator.run / "candidates" / f"{trial.number}.trained"
        try:
            scores = evaluator.write_and_score(made.candidate, scratch)
            if evaluator.metric.drop(before.metric.value, scores.metric.value) >= 0:
                self.short.waste(made.seconds)
                self.without_gain.append(trial.number)
                self.store.write(self._gain_key, self.without_gain)
                return None
            to_onnx.to_safetensors(made.candidate.module, scratch / "model.safetensors")
            facts = {
                "of": trial.number, "plan": self.plan.to_json(), "before": before.metric.value, "after": scores.metric.value,
                **made.to_json(),
            }  # fmt: skip
            write_atomic(scratch / FILE, dump_json(facts))
            size = size_of(scratch / evaluator.files.name)
            origin = f"{self.plan.text()} of {trial.number}"
            number = self.store.finisher.number_for(trial.number, origin)
            shutil.rmtree(evaluator.files.folder(number), ignore_errors=True)
            scratch.rename(evaluator.files.folder(number))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        done = replace(
            before, number=number, recipe=Recipe(made.candidate.recipe.choices, before.recipe.compensation),
            metric=scores.metric, drop=scores.drop.value, paired_drop=scores.drop,
            estimated_drop=scores.estimated_drop, divergence=scores.divergence,
            params=made.candidate.parameter_count, macs=made.candidate.macs, size_bytes=size,
            seconds={"recover": made.seconds}, origin=origin, predicted={}, recovery=facts,
        )  # fmt: skip
        self.store.finisher.add_trained(done, self.constraints.of(done))
        return done
