"""One trial: recipe -> candidate -> file -> outputs and latency of that file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from hwprune import compensation, runtimes
from hwprune.errors import CandidateFailure
from hwprune.latency.bench import Bench
from hwprune.latency.paired import Paired
from hwprune.latency.source import Source
from hwprune.onnx_files import to_onnx
from hwprune.pruning.candidate import Candidate
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe
from hwprune.records.target import Target
from hwprune.records.trial import FAILED, MEASURED, STOPPED, Failure, Trial
from hwprune.searching.evaluating.candidate_files import CandidateFiles, size_of
from hwprune.searching.evaluating.dense import DenseModel
from hwprune.searching.evaluating.early_stopping import Expectation, Stopped
from hwprune.searching.evaluating.scored import ScoredCandidate, Stopwatch
from hwprune.searching.evaluating.scorer import FileScorer, FileScores
from hwprune.searching.evaluating.timing import CandidateTimer
from hwprune.workload.workload import Workload


class Evaluator:
    """Makes trials out of recipes.

    Everything that runs the exported file happens in the bench's process; what goes wrong with a candidate becomes
    a failed trial, what goes wrong with the dense model is an error.

    Attributes:
        files: where candidates are written.
        dense: the dense model and the samples; `DenseModel.prepare` comes before the first trial.
        scorer: runs files on samples.
        timer: measures latencies of files.
    """

    def __init__(
        self, pruner: Pruner, bench: Bench, source: Source, target: Target, run: Path, scratch: Path | None = None
    ) -> None:
        """Nothing is run yet.

        Args:
            target: what the bench runs on; it differs from the search's where latencies are not measured.
            scratch: folder for the dense model and the samples; default: in the run directory. A worker has its own.
        """
        self.pruner, self.bench, self.source, self.target, self.run = pruner, bench, source, target, run
        self.workload: Workload = pruner.workload
        self.metric = self.workload.scoring
        home = scratch or run / "baseline"
        self.files = CandidateFiles(run, pruner, target, runtimes.get(target.runtime))
        self.scorer = FileScorer(self.workload, bench, target, home)
        self.dense = DenseModel(pruner, bench, target, self.files, self.scorer, home)
        self.timer = CandidateTimer(bench, source)
        self._checked_cut = False

    def evaluate(self, number: int, recipe: Recipe, origin: str, expected: Expectation | None = None) -> Trial:
        """Evaluate one recipe; its files lie in the trial's folder afterwards if it was measured."""
        scored = self.score(number, recipe, origin, expected)
        return self.measure(scored, expected) if isinstance(scored, ScoredCandidate) else scored

    def score(self, number: int, recipe: Recipe, origin: str, expected: Expectation | None = None) -> ScoredCandidate | Trial:
        """Everything but the latency; a trial if the candidate failed or was stopped early."""
        expected = expected or Expectation()
        watch = Stopwatch()
        folder = self.files.folder(number)
        try:
            with watch.stage("prune"):
                candidate = self.pruner.prune(recipe)
                if not self._checked_cut:
                    self.pruner.check_cut(candidate)
                    self._checked_cut = True
            scores = self._write_and_score(candidate, folder, watch, expected)
            if compensation.is_sequential(recipe.compensation):  # a finalist's weights are wanted, and dear to make again
                to_onnx.to_safetensors(candidate.module, folder / "model.safetensors")
        except CandidateFailure as failure:
            return self._failed(failure, number, recipe, origin, watch.seconds)
        except Stopped as stop:
            self.files.remove(number)
            return Trial(
                number, recipe, STOPPED, failure=Failure(stop.stage, stop.reason), seconds=watch.seconds, origin=origin,
                divergence=stop.divergence, predicted=expected.predicted,
            )  # fmt: skip
        size = size_of(self.files.model(number))
        return ScoredCandidate(number, recipe, origin, scores, candidate.parameter_count, candidate.macs, size, watch.seconds)

    def measure(self, scored: ScoredCandidate, expected: Expectation | None = None) -> Trial:
        """The latency of a scored candidate, whose file lies in its folder; the trial."""
        expected = expected or Expectation()
        watch = Stopwatch()
        try:
            with watch.stage("measure"):
                paired = self.timer.measure(self.files.model(scored.number), expected)
            self.files.keep_samples(scored.number, paired)
        except CandidateFailure as failure:
            return self._failed(failure, scored.number, scored.recipe, scored.origin, {**scored.seconds, **watch.seconds})
        return Trial(
            scored.number,
            scored.recipe,
            MEASURED,
            metric=scored.scores.metric,
            drop=scored.scores.drop.value,
            paired_drop=scored.scores.drop,
            estimated_drop=scored.scores.estimated_drop,
            latency=paired.latency,
            speedup=paired.speedup,
            params=scored.params,
            macs=scored.macs,
            size_bytes=scored.size_bytes,
            seconds={**scored.seconds, **watch.seconds},
            origin=scored.origin,
            divergence=scored.scores.divergence,
            predicted=expected.predicted,
        )

    def measure_again(self, trial: Trial) -> Paired | None:
        """The latency of a candidate whose files are still there, measured now; None if they are not, or it fails."""
        path = self.files.model(trial.number)
        if not path.is_file():
            return None
        try:
            paired = self.timer.measure_long(path)
        except CandidateFailure:
            return None
        self.files.keep_samples(trial.number, paired)
        return paired

    def write_and_score(self, candidate: Candidate, folder: Path) -> FileScores:
        """Write a candidate's file and recipe; scores of that file on validation. Raises `CandidateFailure`."""
        return self._write_and_score(candidate, folder, Stopwatch(), Expectation())

    def refine(self, trial: Trial, steps: str) -> Trial | None:
        """The trial's cut with a more thorough compensation, exported and checked; None if it is no better on validation.

        Its files replace those of the trial. Shapes, and so the latency, stay what they are.

        Raises:
            CandidateFailure: it can't be made, or its file does not compute what the module computes.
        """
        recipe = Recipe(trial.recipe.choices, steps)
        candidate = self.pruner.prune(recipe)
        scratch = self.files.folder(trial.number).with_name(f"{trial.number}.refined")
        try:
            scores = self.write_and_score(candidate, scratch)
            if trial.divergence is not None and scores.divergence.value >= trial.divergence.value:
                return None
            to_onnx.to_safetensors(candidate.module, scratch / "model.safetensors")
            self.files.remove(trial.number)
            scratch.rename(self.files.folder(trial.number))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        size = size_of(self.files.model(trial.number))
        return replace(
            trial, recipe=recipe, metric=scores.metric, drop=scores.drop.value, paired_drop=scores.drop,
            estimated_drop=scores.estimated_drop, divergence=scores.divergence, size_bytes=size,
        )  # fmt: skip

    def check_exact(self, trial: Trial) -> float:
        """Compare the trial's cut with the masked model: the largest relative difference. Raises `RunError`."""
        # Options of layers are there for the trial's own compensation; without any they would be solved anew.
        recipe = Recipe(trial.recipe.choices, compensation.local_part(trial.recipe.compensation))
        return self.pruner.check_cut(self.pruner.prune(recipe))

    def _write_and_score(self, candidate: Candidate, folder: Path, watch: Stopwatch, expected: Expectation) -> FileScores:
        """Write the candidate's files; scores of what was written. Raises `Stopped`."""
        with watch.stage("export"):
            path, cut_from_dense = self.files.write_candidate(candidate, folder)
            candidate.write_recipe(folder)
        try:
            return self._score_file(candidate, path, watch, expected)
        except CandidateFailure as failure:
            if not cut_from_dense or failure.stage not in ("convert", "run", "parity"):
                raise
            # A gap in the ONNX rules must not cost candidates: from here on each is exported.
            self.pruner.template.reason = f"a file cut from the dense one was wrong ({failure.reason})"
            with watch.stage("export"):
                self.files.write_candidate(candidate, folder)
            return self._score_file(candidate, path, watch, expected)

    def _score_file(self, candidate: Candidate, path: Path, watch: Stopwatch, expected: Expectation) -> FileScores:
        with watch.stage("evaluate"):
            self.bench.load("candidate", path, threads=self.scorer.threads)
            split, screen = self.dense.validation, self.dense.screen
            if screen is not None and expected.rivals:  # a first look costs time: only where something can come of it
                outputs = self.scorer.outputs("candidate", screen)
                self.scorer.check_parity(candidate.module, outputs, screen)
                expected.stop_if_beaten("screen", self.scorer.divergence(outputs, screen))
            outputs = self.scorer.outputs("candidate", split)
            self.scorer.check_parity(candidate.module, outputs, split)
            scores = self.scorer.scores(outputs, split)
            expected.stop_if_beaten("evaluate", scores.divergence)
            self.bench.drop("candidate")
        return scores

    def _failed(self, failure: CandidateFailure, number: int, recipe: Recipe, origin: str, seconds: Mapping[str, float]) -> Trial:
        if failure.stage in ("run", "measure"):
            self.dense.check_device(failure)
        self.files.remove(number)
        return Trial(
            number, recipe, FAILED, failure=Failure(failure.stage, failure.reason), seconds=dict(seconds), origin=origin
        )  # fmt: skip
