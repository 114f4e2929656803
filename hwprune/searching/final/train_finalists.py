"""Recovery training of the finalists: who is trained, what comes of it.

One-shot pruning says what is possible; a little training makes it shippable, and it may make shippable what had lost too much.
So more finalists than usual are looked at, faster ones too; all of them get a tenth of the training, and those on the front
after that get all of it (training-aware selection; DarwinLM, Tang et al. 2025, arXiv 2502.07780).

A trained candidate is a trial of its own, with files of its own: both regimes can be deployed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hwprune.common.files import dump_json, write_atomic
from hwprune.errors import CandidateFailure, HwpruneError
from hwprune.onnx_files import to_onnx
from hwprune.patterns import BRANCH
from hwprune.pruning.candidate import Candidate
from hwprune.records import pareto
from hwprune.records.recipe import Recipe
from hwprune.records.trial import Trial
from hwprune.recovery.loop.run import search_rate
from hwprune.recovery.plan import Plan, shorter
from hwprune.recovery.recover import Recovered, prune_gradually, recover
from hwprune.recovery.sparsifiers.base import FixedMask
from hwprune.searching.constraints import Constraints
from hwprune.searching.evaluating.candidate_files import TRAINING, size_of
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.final.belief import DropBelief
from hwprune.searching.final.finalists import finalists, objectives
from hwprune.searching.final.point import DerivedTrials
from hwprune.searching.progress import Progress
from hwprune.searching.sampling.problem import Limits
from hwprune.searching.study.store import Store

LOOKED_AT = 10
"""Finalists that get the short training."""
TRAINED = 5
"""Finalists that get all of it."""
SHORT = 0.1
REACH = 8.0
"""Drop before training over the largest one that is wanted, up to which a candidate is looked at."""
FARTHEST = 0.35
"""The farthest drop as a share of the dense metric, where no largest drop is wanted."""
FILE = "recovery.json"
WITHOUT_GAIN = "trained without gain"
"""Attribute of the study, with the plan: trials that validation did not find better after their training."""
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


def train_finalists(
    evaluator: Evaluator, store: Store, plan: Plan, constraints: Constraints, progress: Progress
) -> DerivedTrials:
    """Trials of trained candidates with their files, better on validation than before their training; not measured anew."""
    trainer = _Trainer(evaluator, store, plan, constraints, progress)
    # A quantised form of a trained trial remembers its training too, and is not it.
    trained = [t for t in store.trials() if t.recovery and not t.quantised]
    known = {int(t.recovery["of"]): t for t in trained if t.recovery["plan"] == plan.to_json()}
    chosen = _looked_at(store.trials(as_searched=True), constraints, evaluator)
    if not chosen:
        return DerivedTrials([], ["No candidate is near enough to dense to be trained."])
    trainer.choose_rate(chosen)
    chosen = [trial for trial in chosen if str(trial.number) not in trainer.failures]
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
    notes = [f"Trial {number} could not be trained: {reason}." for number, reason in (trainer.failures | trainer.passing).items()]
    cost = sum(float(t.recovery["seconds"]) for t in found) + trainer.wasted
    if trainer.without_gain:
        listed = ", ".join(map(str, trainer.without_gain))
        notes.append(f"Trained without gain on validation, so left as they were: {listed}.")
    notes.append(
        f"{len(found)} of {len(chosen)} finalists are better on validation after {plan.text()}; training took {cost:.0f} s."
    )
    return DerivedTrials(found, notes)


def _looked_at(trials: Sequence[Trial], constraints: Constraints, evaluator: Evaluator) -> list[Trial]:
    """The front and what is just behind it, as far as training may bring it back."""
    dense = abs(evaluator.dense.baseline.metric.value)
    farthest = FARTHEST * dense if constraints.max_drop is None else max(REACH * constraints.max_drop, 0.02 * dense)
    near = [t for t in trials if not t.measured or (t.drop is not None and t.drop <= farthest)]
    belief = DropBelief(trials, Limits(reference_drop=farthest))
    return finalists(near, replace(constraints, max_drop=None), belief, LOOKED_AT, dense)


class _Trainer:
    def __init__(self, evaluator: Evaluator, store: Store, plan: Plan, constraints: Constraints, progress: Progress) -> None:
        self.evaluator, self.store, self.plan, self.constraints, self.progress = evaluator, store, plan, constraints, progress
        # Of another plan nothing is known: a run may be resumed with more epochs.
        self._gain_key, self._short_key = f"{WITHOUT_GAIN} {plan.text()}", f"{SHORT_TRAINING} {plan.text()}"
        self._rate_key, self._failed_key = f"{RATE} {plan.text()}", f"{FAILED} {plan.text()}"
        self._wasted_key = f"{WASTED} {plan.text()}"
        self.failures: dict[str, str] = dict(store.read(self._failed_key) or {})
        self.passing: dict[str, str] = {}
        """Trial -> why it could not be trained, for reasons that may be gone when the search is resumed."""
        self._rated = plan
        self.without_gain: list[int] = list(store.read(self._gain_key) or [])
        self.wasted = float(store.read(self._wasted_key) or 0.0)
        """Seconds of training that no candidate came of."""

    def choose_rate(self, chosen: Sequence[Trial]) -> None:
        """One learning rate for all, by short trials with the one in the middle: short trainings are compared with each other."""
        if self.plan.rate is not None or self.plan.kind == "gradual":  # which looks at what it removes itself
            return
        rate = self.store.read(self._rate_key)
        if rate is None:
            self.progress.stage("looking for a learning rate")
            pruner = self.evaluator.pruner
            candidate = self._candidate(chosen[len(chosen) // 2])
            held = FixedMask(candidate.masks) if candidate.masks else None
            start = time.monotonic()
            try:
                rate = search_rate(
                    candidate.module, pruner.workload, self.plan, held, pruner.graph.module if self.plan.taught else None
                )
            except FAILURES:  # the trainings themselves will say what is wrong
                return
            self._waste(time.monotonic() - start)
            self.store.write(self._rate_key, rate)
        self._rated = replace(self.plan, rate=float(rate))

    def select(self, chosen: Sequence[Trial]) -> list[Trial]:
        """After a short training: the front by (drop, speedup), then who is just behind it."""
        known = self.store.read(self._short_key) or {}
        scored = []
        for place, trial in enumerate(chosen):
            self.progress.stage(f"training finalist {place + 1} of {len(chosen)} for a while, to choose who is trained")
            if str(trial.number) not in known:
                try:
                    made = recover(self.evaluator.pruner, self._candidate(trial), shorter(self._rated, SHORT))
                except FAILURES as failure:
                    self._failed(trial, failure)
                    continue
                self._waste(made.seconds)
                known[str(trial.number)] = made.outcome.after.value
                self.store.write(self._short_key, known)
            base = self.evaluator.dense.baseline
            drop = self.evaluator.metric.drop(base.metric.value, known[str(trial.number)])
            scored.append((trial, drop))
        best: list[tuple[Trial, float]] = []
        for layer in pareto.layers(scored, lambda pair: (pair[1], objectives(pair[0])[1])):
            best += layer
            if len(best) >= TRAINED:
                break
        kept = sorted(best[:TRAINED], key=lambda pair: objectives(pair[0])[1])
        return [trial for trial, _ in kept]

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
                    self.evaluator.pruner, self._candidate(trial), self._rated, folder=checkpoints, keep_checkpoint=True,
                    report=self._report,
                )  # fmt: skip
            found = self._finish(trial, made)
        except FAILURES as failure:  # Ctrl-C goes past this: what was trained so far is still to be used
            self._failed(trial, failure)
            found = None
            if not isinstance(failure, CandidateFailure):
                return None
        shutil.rmtree(checkpoints, ignore_errors=True)  # not before the result is stored
        return found

    def _failed(self, trial: Trial, failure: Exception) -> None:
        """Told; what lies in the candidate is remembered, and not tried again when the search is resumed. A full disk is."""
        if isinstance(failure, CandidateFailure):
            self.failures[str(trial.number)] = failure.reason
            self.store.write(self._failed_key, self.failures)
        else:
            self.passing[str(trial.number)] = f"{type(failure).__name__}: {failure}"

    def _waste(self, seconds: float) -> None:
        self.wasted += seconds
        self.store.write(self._wasted_key, self.wasted)

    def _report(self, done: int, total: int, left_s: float, best: Any) -> None:
        self.progress.trained(done, total, left_s, f"{best.value:.4f} {best.unit}")

    def _candidate(self, trial: Trial) -> Candidate:
        """As the search left it: a finalist's thorough compensation included, where it has one."""
        newest = next((t for t in self.store.trials() if t.number == trial.number), trial)
        return self.evaluator.pruner.prune(newest.recipe)

    def _finish(self, trial: Trial, made: Recovered) -> Trial | None:
        """Write, score and keep a trained candidate; it gets a number only if it is better on validation."""
        evaluator = self.evaluator
        before = next((t for t in self.store.trials() if t.number == trial.number), trial)
        assert before.metric is not None
        scratch = evaluator.run / "candidates" / f"{trial.number}.trained"
        try:
            scores = evaluator.write_and_score(made.candidate, scratch)
            if evaluator.metric.drop(before.metric.value, scores.metric.value) >= 0:
                self._waste(made.seconds)
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
