"""One trial: recipe -> candidate -> file -> outputs and latency of that file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hwprune import runtimes
from hwprune.errors import CandidateFailure, RunError, WorkloadError
from hwprune.latency.bench import Bench
from hwprune.latency.source import MEASURED as MEASURED_SOURCE
from hwprune.latency.source import Source
from hwprune.onnx_files import to_onnx
from hwprune.pruning.candidate import Candidate
from hwprune.pruning.pruner import Pruner
from hwprune.records.measurement import Measurement
from hwprune.records.recipe import Recipe
from hwprune.records.target import Target
from hwprune.records.trial import FAILED, MEASURED, STOPPED, Failure, Trial
from hwprune.searching.evaluating.candidate_files import SAMPLES, size_of
from hwprune.searching.evaluating.dense import CHUNK, Baseline, Split, quantised, same_outputs
from hwprune.searching.evaluating.early_stopping import SCREEN_EXAMPLES, Advice, Stopped
from hwprune.searching.evaluating.scored import Scored, Stopwatch
from hwprune.searching.evaluating.timing import LIE, latency_of, speedup_of
from hwprune.workload import data_checks, scoring
from hwprune.workload.metrics import Metric
from hwprune.workload.scoring import Outputs
from hwprune.workload.workload import Workload

PARITY_TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 1.0}
"""Largest difference between the runtime's outputs and PyTorch's in 32 bits, relative to the largest output.

Reduced precision keeps 11 or 8 bits and errors add up over the layers; what it costs shows in the metric. Integers are only
checked for shape.
"""
EXAMPLE = "example.npz"
PARITY_EXAMPLES = 8


class Evaluator:
    """Makes trials out of recipes.

    Everything that runs the exported file happens in the bench's process; what goes wrong with a candidate becomes
    a failed trial, what goes wrong with the dense model is an error.
    """

    def __init__(
        self, pruner: Pruner, bench: Bench, source: Source, target: Target, run: Path, scratch: Path | None = None
    ) -> None:
        """Nothing is run yet.

        Args:
            target: what the bench runs on; it differs from the search's where latencies are not measured.
            scratch: folder for the dense model and the samples; default: in the run directory. A worker has its own.
        """
        self.pruner = pruner
        self.workload: Workload = pruner.workload
        self.metric: Metric = self.workload.scoring
        self.bench = bench
        self.target = target
        self.run = run
        self.source = source
        self.runtime = runtimes.get(target.runtime)
        self.home = scratch or run / "baseline"
        self.example = self.home / EXAMPLE
        self.dense_model = self.home / self.runtime.file
        self.validation = Split(self.home / "validation.npz", [])
        self._test: Split | None = None
        self.baseline: Baseline | None = None
        self.calibration_sha256 = ""
        self._checked_cut = False
        # Outputs are the same with any number of threads, and nobody times them.
        own = runtimes.get(target.runtime).device == "cpu" and self.runtime.file.endswith(".onnx") and bench.here
        self._threads = max(target.threads, len(os.sched_getaffinity(0))) if own else None
        self._chunk = 0

    def folder(self, number: int) -> Path:
        return self.run / "candidates" / str(number)

    # -- the dense model ---------------------------------------------------------------------

    def prepare(self) -> Baseline:
        """Export, run, score and time the dense model.

        Raises:
            WorkloadError: the data, the metric or the dense outputs can't be used.
            RunError: the dense model can't be exported or run.
        """
        workload = self.workload
        data_checks.check_batches(workload, self.pruner.graph.module)
        example = Workload(
            workload.name, workload.model, workload.example_inputs, [], [(workload.example_inputs, torch.zeros(1))]
        )
        scoring.write_samples(example, "validation", self.example)
        digest = hashlib.sha256()
        for inputs, _ in workload.batches("calibration"):  # a fault of the data must come up now, not in every trial
            for tensor in inputs:
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.calibration_sha256 = digest.hexdigest()
        self.validation.targets = scoring.write_samples(workload, "validation", self.validation.file)
        dense = self.pruner.graph.module
        try:
            self._write(dense, {}, self.dense_model)
            self._check_integers()
            self.bench.load("dense", self.dense_model, keep=True)
            metric, self.validation.dense = self.score("dense", self.validation)
            self._check_labels("validation", self.validation)
            if self._threads is not None and self._divisible():
                self._chunk = CHUNK
                metric, self.validation.dense = self.score("dense", Split(self.validation.file, self.validation.targets))
            self.validation.screen = self._screen()
            self._check_parity(dense, self.validation.dense)
            paired = self.source.dense(self.dense_model)
        except CandidateFailure as failure:
            if failure.stage == "evaluate":
                raise WorkloadError(f"the dense model can't be scored: {failure.reason}") from failure
            raise RunError(f"the dense model can't be measured ({failure.stage}): {failure.reason}") from failure
        self.baseline = Baseline(
            metric=metric,
            latency=latency_of(paired),
            self_speedup=speedup_of(paired),
            params=sum(p.numel() for p in dense.parameters()),
            macs=self.pruner.macs({}),
            size_bytes=size_of(self.dense_model),
            split="validation",
        )
        return self.baseline

    def _check_integers(self) -> None:
        """An int8 target runs what the file quantises: one without Q/DQ nodes would run in 32 bits under the name of int8."""
        if self.target.precision == "int8" and not quantised(self.dense_model):
            raise WorkloadError(
                f"target {self.target.name} is int8, but the model is not quantised (no QuantizeLinear or integer operators): "
                "it would run in floating point. Bring a quantised model.onnx, or choose another target"
            )

    def test_split(self) -> Split:
        """Samples of the test split with the dense model's outputs on them; written once."""
        if self._test is None:
            self._test = self._add_split("test")
        return self._test

    def _add_split(self, split: str) -> Split:
        made = Split(self.home / f"{split}.npz", [])
        made.targets = scoring.write_samples(self.workload, split, made.file)
        _, made.dense = self.score("dense", made)
        self._check_labels(split, made)
        return made

    def _check_labels(self, split: str, made: Split) -> None:
        data_checks.check_labels(self.workload, split, made.dense[0][0].shape, made.targets)

    def score(self, key: str, split: Split) -> tuple[Measurement, Outputs]:
        """Metric and outputs of a loaded model on a split."""
        outputs = self._outputs(key, split)
        return scoring.score(self.metric, outputs, split.targets, split.dense or None), outputs

    def _outputs(self, key: str, split: Split, first: int = 0, last: int | None = None) -> Outputs:
        """Outputs of a loaded model on the batches [first, last) of a split."""
        out = self.home / f".outputs-{key}.npz"
        try:
            self.bench.run(key, split.file, out, first, last, self._chunk)
            return scoring.read_outputs(out)
        finally:
            out.unlink(missing_ok=True)

    def _divisible(self) -> bool:
        """Are outputs the same when the first batch is run in parts?"""
        whole = self.validation.dense[0]
        out = self.home / ".outputs-parts.npz"
        try:
            self.bench.load("twin", self.dense_model)
            self.bench.run("twin", self.validation.file, out, 0, 1, CHUNK)
            parts = scoring.read_outputs(out)[0]
        except CandidateFailure:  # a fixed batch size, or an output without batch
            return False
        finally:
            out.unlink(missing_ok=True)
            if self.bench.alive:
                self.bench.drop("twin")
        return all(same_outputs(part, one) for part, one in zip(parts, whole, strict=True))

    def _divergence(self, outputs: Outputs, split: Split) -> Measurement:
        count = len(outputs)
        return scoring.divergence(self.metric, outputs, split.dense[:count], split.targets[:count])

    def _screen(self) -> int:
        """Leading batches that hold `SCREEN_EXAMPLES`; 0 if that would be most of the split."""
        sizes = [len(batch[0]) for batch in self.validation.dense]
        count, batches = 0, 0
        while batches < len(sizes) and count < SCREEN_EXAMPLES:
            count += sizes[batches]
            batches += 1
        return batches if 3 * count <= sum(sizes) else 0

    # -- candidates --------------------------------------------------------------------------

    def trial(self, number: int, recipe: Recipe, origin: str, advice: Advice | None = None) -> Trial:
        """Evaluate one recipe; its files lie in ``folder(number)`` afterwards if it was measured."""
        scored = self.scored(number, recipe, origin, advice)
        return self.timed(scored, advice) if isinstance(scored, Scored) else scored

    def scored(self, number: int, recipe: Recipe, origin: str, advice: Advice | None = None) -> Scored | Trial:
        """Everything but the latency; a trial if it failed or was stopped early."""
        advice = advice or Advice()
        watch = Stopwatch()
        folder = self.folder(number)
        try:
            with watch.stage("prune"):
                candidate = self.pruner.prune(recipe)
                if not self._checked_cut:
                    self.pruner.check_cut(candidate)
                    self._checked_cut = True
            metric, divergence = self._write_and_score(candidate, folder, watch, advice)
        except CandidateFailure as failure:
            return self._failed(failure, number, recipe, origin, watch.seconds)
        except Stopped as stop:
            self._forget(folder)
            return Trial(
                number, recipe, STOPPED, failure=Failure(stop.stage, stop.reason), seconds=watch.seconds, origin=origin,
                divergence=stop.divergence, predicted=advice.predicted,
            )  # fmt: skip
        size = size_of(folder / self.runtime.file)
        return Scored(number, recipe, origin, metric, divergence, candidate.parameter_count, candidate.macs, size, watch.seconds)

    def timed(self, scored: Scored, advice: Advice | None = None) -> Trial:
        """A scored candidate with its latency, whose file lies in its folder; the trial."""
        assert self.baseline is not None
        advice = advice or Advice()
        watch = Stopwatch()
        path = self.folder(scored.number) / self.runtime.file
        try:
            with watch.stage("measure"):
                self.bench.load("candidate", path)
                paired = self.source.candidate(path, brief=True)
                if self._lies(paired, advice):
                    paired = self._again(path, paired)
            self.keep_samples(scored.number, paired)
        except CandidateFailure as failure:
            return self._failed(failure, scored.number, scored.recipe, scored.origin, {**scored.seconds, **watch.seconds})
        return Trial(
            scored.number,
            scored.recipe,
            MEASURED,
            metric=scored.metric,
            drop=self.metric.drop(self.baseline.metric.value, scored.metric.value),
            latency=latency_of(paired),
            speedup=speedup_of(paired),
            params=scored.params,
            macs=scored.macs,
            size_bytes=scored.size_bytes,
            seconds={**scored.seconds, **watch.seconds},
            origin=scored.origin,
            divergence=scored.divergence,
            predicted=advice.predicted,
        )

    def _failed(self, failure: CandidateFailure, number: int, recipe: Recipe, origin: str, seconds: Mapping[str, float]) -> Trial:
        if failure.stage in ("run", "measure"):
            self._check_device(failure)
        self._forget(self.folder(number))
        return Trial(
            number, recipe, FAILED, failure=Failure(failure.stage, failure.reason), seconds=dict(seconds), origin=origin
        )  # fmt: skip

    @staticmethod
    def _forget(folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def _lies(self, paired: Mapping[str, Any], advice: Advice) -> bool:
        """Is a latency too far from what the table and all measurements so far say?"""
        if self.source.label != MEASURED_SOURCE or "ratio" not in advice.predicted:
            return False
        ratio, expected, sd = 1 / float(paired["speedup"]), advice.predicted["ratio"], advice.predicted["ratio_sd"]
        own = (1 / float(paired["ci_low"]) - 1 / float(paired["ci_high"])) / 2 / 1.96
        return abs(ratio - expected) > LIE * math.hypot(sd, own)

    def _again(self, path: Path, first: dict[str, Any]) -> dict[str, Any]:
        """A second session. Where the two agree the prediction was wrong; where they don't, a third one decides."""
        results = [first]
        for _ in range(2):
            self.bench.load("candidate", path)
            results.append(self.source.candidate(path))
            close = [
                one for one in results[:-1]
                if one["ci_low"] <= results[-1]["ci_high"] and results[-1]["ci_low"] <= one["ci_high"]
            ]  # fmt: skip
            if close:
                break
        results.sort(key=lambda one: float(one["speedup"]))
        return {**results[len(results) // 2], "measured_again": len(results) - 1}

    def _check_device(self, failure: CandidateFailure) -> None:
        """Is it the candidate, or is the device gone? Raises `RunError` if the dense model doesn't run any more either."""
        scratch = self.home / ".outputs-check.npz"
        try:
            self.bench.load("twin", self.dense_model)
            self.bench.run("twin", self.example, scratch)
            self.bench.drop("twin")
        except CandidateFailure as second:
            raise RunError(
                f"the device does not run the dense model any more ({second.reason}); before, a candidate failed with: "
                f"{failure.reason}. Finished trials are kept; go on with --resume when it is back"
            ) from failure
        finally:
            scratch.unlink(missing_ok=True)

    def measure_again(self, trial: Trial) -> dict[str, Any] | None:
        """The latency of a candidate whose files are still there, measured now; None if they are not, or it fails."""
        path = self.folder(trial.number) / self.runtime.file
        if not path.is_file():
            return None
        try:
            self.bench.load("candidate", path)
            paired = self.source.candidate(path)
        except CandidateFailure:
            return None
        self.keep_samples(trial.number, paired)
        return paired

    def _write_and_score(
        self, candidate: Candidate, folder: Path, watch: Stopwatch, advice: Advice
    ) -> tuple[Measurement, Measurement]:
        """The candidate's files, and metric and divergence of what was written. Raises `Stopped`."""
        with watch.stage("export"):
            cut_from_dense = self._write(candidate.module, candidate.keeps, folder / self.runtime.file, candidate.drop)
            candidate.write_recipe(folder)
        try:
            return self._score_file(candidate, folder, watch, advice)
        except CandidateFailure as failure:
            if not cut_from_dense or failure.stage not in ("run", "parity"):
                raise
            # A gap in the ONNX rules must not cost candidates: from here on each is exported.
            self.pruner.template.reason = f"a file cut from the dense one was wrong ({failure.reason})"
            with watch.stage("export"):
                self._write(candidate.module, candidate.keeps, folder / self.runtime.file, candidate.drop)
            return self._score_file(candidate, folder, watch, advice)

    def _score_file(
        self, candidate: Candidate, folder: Path, watch: Stopwatch, advice: Advice
    ) -> tuple[Measurement, Measurement]:
        with watch.stage("evaluate"):
            self.bench.load("candidate", folder / self.runtime.file, threads=self._threads)
            split = self.validation
            outputs = self._outputs("candidate", split, 0, split.screen or None)
            self._check_parity(candidate.module, outputs)
            if split.screen:
                self._stop_early("screen", self._divergence(outputs, split), advice)
                outputs = outputs + self._outputs("candidate", split, split.screen)
            divergence = self._divergence(outputs, split)
            self._stop_early("evaluate", divergence, advice)
            metric = scoring.score(self.metric, outputs, split.targets, split.dense)
            self.bench.drop("candidate")
        return metric, divergence

    @staticmethod
    def _stop_early(stage: str, divergence: Measurement, advice: Advice) -> None:
        rival = advice.beaten_by(divergence)
        if rival is not None:
            raise Stopped(
                stage,
                f"on {divergence.samples} examples its outputs differ by {divergence.value:.3g} {divergence.unit} from dense; "
                f"trial {rival.number} differs by less than {rival.high:.3g} and is at least as fast as this one can be expected "
                f"to be ({1 / advice.predicted['ratio']:.2f}x)",
                divergence,
            )

    def write_and_score(self, candidate: Candidate, folder: Path) -> tuple[Measurement, Measurement]:
        """Write a candidate's file and recipe; metric and divergence of that file on validation. Raises `CandidateFailure`."""
        return self._write_and_score(candidate, folder, Stopwatch(), Advice())

    def score_file(self, path: Path) -> tuple[Measurement, Measurement]:
        """Metric and divergence, on validation, of a file that need not compute what any module computes.

        Raises `CandidateFailure`.
        """
        self.bench.load("candidate", path, threads=self._threads)
        outputs = self._outputs("candidate", self.validation)
        self.bench.drop("candidate")
        split = self.validation
        return scoring.score(self.metric, outputs, split.targets, split.dense), self._divergence(outputs, split)

    def refined(self, trial: Trial, compensation: str) -> Trial | None:
        """The same cut with a more thorough compensation, exported and checked; None if it is no better on validation.

        Its files replace those of the trial. Shapes, and so the latency, stay what they are.

        Raises:
            CandidateFailure: it can't be made, or its file does not compute what the module computes.
        """
        assert self.baseline is not None
        recipe = Recipe(trial.recipe.choices, compensation)
        candidate = self.pruner.prune(recipe)
        folder = self.run / "candidates" / f"{trial.number}.refined"
        try:
            metric, divergence = self._write_and_score(candidate, folder, Stopwatch(), Advice())
            if trial.divergence is not None and divergence.value >= trial.divergence.value:
                return None
            to_onnx.to_safetensors(candidate.module, folder / "model.safetensors")
            self._forget(self.folder(trial.number))
            folder.rename(self.folder(trial.number))
        finally:
            self._forget(folder)
        drop = self.metric.drop(self.baseline.metric.value, metric.value)
        size = size_of(self.folder(trial.number) / self.runtime.file)
        return replace(trial, recipe=recipe, metric=metric, drop=drop, divergence=divergence, size_bytes=size)

    def check_exact(self, trial: Trial) -> float:
        """Compare the trial's cut with the masked model: the largest relative difference. Raises `RunError`."""
        return self.pruner.check_cut(self.pruner.prune(Recipe(trial.recipe.choices, "none")))

    def ensure_files(self, trial: Trial, weights: bool) -> Path:
        """The candidate's folder with model.onnx, recipe.json and, if asked for, model.safetensors.

        A folder that was cleared away or lost is made again from the recipe.
        """
        folder = self.folder(trial.number)
        missing = not (folder / self.runtime.file).is_file() or not (folder / "recipe.json").is_file()
        if not trial.searched and missing:
            raise CandidateFailure("export", f"the trained or quantised files of trial {trial.number} are gone")
        if missing or (weights and not (folder / "model.safetensors").is_file()):
            candidate = self.pruner.prune(trial.recipe)
            if missing:
                self._write(candidate.module, candidate.keeps, folder / self.runtime.file, candidate.drop)
                candidate.write_recipe(folder)
            if weights:
                to_onnx.to_safetensors(candidate.module, folder / "model.safetensors")
        return folder

    def write(self, candidate: Candidate, folder: Path) -> Path:
        """The candidate's file alone, for what is measured but never scored."""
        path = folder / self.runtime.file
        self._write(candidate.module, candidate.keeps, path, candidate.drop)
        return path

    def _write(self, module: torch.nn.Module, keeps: Mapping[str, torch.Tensor], path: Path, drop: Collection[str] = ()) -> bool:
        """The file that the runtime runs, in its format and precision. Was it cut from the dense ONNX file?"""
        if path.suffix == ".pt2":
            try:
                to_onnx.to_pt2(module, self.workload.example_inputs, path)
            except Exception as error:  # torch.export raises its own types
                first = (str(error).strip().splitlines() or [""])[0]
                raise CandidateFailure("export", f"{type(error).__name__}: {first}") from error
            return False
        cut = self.pruner.template.write(module, keeps, path, drop)
        if (precision := self.runtime.precision_of_file(self.target.precision)) != "fp32":
            to_onnx.convert(path, precision)
        return cut

    def keep_samples(self, number: int | str, paired: dict[str, Any], stage: str = "search") -> None:
        """Raw samples, a line a measurement: too many for record.json."""
        if "samples" in paired:
            line = {
                "trial": number,
                "stage": stage,
                "clock": paired["clock"],
                "runs_a_letter": paired["runs_a_letter"],
                **paired["samples"],
            }
            # One write: several workers append to one file.
            handle = os.open(self.run / SAMPLES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, (json.dumps(line) + "\n").encode())
            finally:
                os.close(handle)

    def _check_parity(self, module: torch.nn.Module, outputs: Outputs) -> None:
        """The file must compute what the module computes."""
        expected = scoring.torch_outputs(module, self.workload.batches("validation"), PARITY_EXAMPLES)
        got = outputs[0][0][: len(expected)]
        if got.shape != expected.shape:
            raise CandidateFailure(
                "parity", f"the runtime's output has shape {tuple(got.shape)}, PyTorch's {tuple(expected.shape)}"
            )
        scale = max(float(expected.abs().max()), 1e-30)
        difference = float((got - expected.cpu()).abs().max()) / scale
        if not difference <= PARITY_TOLERANCES[self.target.precision]:
            raise CandidateFailure("parity", f"the runtime's outputs differ from PyTorch's by {difference:.2g} (relative)")
