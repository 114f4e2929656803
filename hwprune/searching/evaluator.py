"""One trial: recipe -> candidate -> file -> outputs and latency of that file."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch

from hwprune import evaluate, export, runtimes
from hwprune.errors import CandidateFailure, RunError, WorkloadError
from hwprune.evaluate import Outputs
from hwprune.latency.bench import Bench
from hwprune.latency.source import Source
from hwprune.measurement import Measurement
from hwprune.metrics import Metric
from hwprune.pruning import Candidate, Pruner
from hwprune.recipe import Recipe
from hwprune.target import Target
from hwprune.trial import FAILED, MEASURED, Failure, Trial
from hwprune.workload import Workload

PARITY_TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 1.0}
"""Largest difference between the runtime's outputs and PyTorch's in 32 bits, relative to the largest output.

Reduced precision keeps 11 or 8 bits and errors add up over the layers; what it costs shows in the metric. Integers are only
checked for shape.
"""
EXAMPLE = "example.npz"
SAMPLES = "samples.jsonl"
PARITY_EXAMPLES = 32


@dataclass(frozen=True, slots=True)
class Baseline:
    """The dense model, measured the same way as every candidate."""

    metric: Measurement
    latency: Measurement
    self_speedup: Measurement
    """The dense model against a second copy of itself: what "no difference" looks like here."""
    params: int
    macs: int
    size_bytes: int
    split: str
    test_metric: Measurement | None = None
    footprint: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        data = {
            "metric": self.metric.to_json(),
            "latency": self.latency.to_json(),
            "self_speedup": self.self_speedup.to_json(),
            "params": self.params,
            "macs": self.macs,
            "size_bytes": self.size_bytes,
            "split": self.split,
            "footprint": dict(self.footprint),
        }
        return data if self.test_metric is None else {**data, "test_metric": self.test_metric.to_json()}


@dataclass(slots=True)
class Split:
    """Evaluation samples in a file, their targets, and the dense model's outputs on them."""

    file: Path
    targets: list[Any]
    dense: Outputs = field(default_factory=list)


class Stopwatch:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Evaluator:
    """Makes trials out of recipes.

    Everything that runs the exported file happens in the bench's process; what goes wrong with a candidate becomes
    a failed trial, what goes wrong with the dense model is an error.
    """

    def __init__(self, pruner: Pruner, bench: Bench, source: Source, target: Target, run: Path) -> None:
        """``target`` is what the bench runs on; it differs from the search's where latencies are not measured."""
        self.pruner = pruner
        self.workload: Workload = pruner.workload
        self.metric: Metric = self.workload.scoring
        self.bench = bench
        self.target = target
        self.run = run
        self.source = source
        self.runtime = runtimes.get(target.runtime)
        self.example = run / "baseline" / EXAMPLE
        self.dense_model = run / "baseline" / self.runtime.file
        self.validation = Split(run / "baseline" / "validation.npz", [])
        self.baseline: Baseline | None = None
        self._checked_cut = False

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
        example = Workload(
            workload.name, workload.model, workload.example_inputs, [], [(workload.example_inputs, torch.zeros(1))]
        )
        evaluate.write_samples(example, "validation", self.example)
        for _ in workload.batches("calibration"):
            pass  # a fault of the calibration data must come up now, not in every trial
        self.validation.targets = evaluate.write_samples(workload, "validation", self.validation.file)
        dense = self.pruner.graph.module
        try:
            self._write(dense, {}, self.dense_model)
            self._check_integers()
            self.bench.load("dense", self.dense_model, keep=True)
            metric, self.validation.dense = self.score("dense", self.validation)
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

    def add_split(self, split: str) -> Split:
        """Samples of another split with the dense model's outputs on them."""
        made = Split(self.run / "baseline" / f"{split}.npz", [])
        made.targets = evaluate.write_samples(self.workload, split, made.file)
        _, made.dense = self.score("dense", made)
        return made

    def score(self, key: str, split: Split) -> tuple[Measurement, Outputs]:
        """Metric and outputs of a loaded model on a split."""
        out = self.run / "baseline" / f".outputs-{key}.npz"
        try:
            self.bench.run(key, split.file, out)
            outputs = evaluate.read_outputs(out)
        finally:
            out.unlink(missing_ok=True)
        return evaluate.score(self.metric, outputs, split.targets, split.dense or None), outputs

    # -- candidates --------------------------------------------------------------------------

    def trial(self, number: int, recipe: Recipe, origin: str) -> Trial:
        """Evaluate one recipe; its files lie in ``folder(number)`` afterwards if it was measured."""
        assert self.baseline is not None
        watch = Stopwatch()
        folder = self.folder(number)
        try:
            with watch.stage("prune"):
                candidate = self.pruner.prune(recipe)
                if not self._checked_cut:
                    self.pruner.check_cut(candidate)
                    self._checked_cut = True
            metric = self._write_and_score(candidate, folder, watch)
            with watch.stage("measure"):
                paired = self.source.candidate(folder / self.runtime.file)
            self.keep_samples(number, paired)
        except CandidateFailure as failure:
            if failure.stage in ("run", "measure"):
                self._check_device(failure)
            shutil.rmtree(folder, ignore_errors=True)
            reason = Failure(failure.stage, failure.reason)
            return Trial(number, recipe, FAILED, failure=reason, seconds=watch.seconds, origin=origin)
        return Trial(
            number,
            recipe,
            MEASURED,
            metric=metric,
            drop=self.metric.drop(self.baseline.metric.value, metric.value),
            latency=latency_of(paired),
            speedup=speedup_of(paired),
            params=candidate.parameter_count,
            macs=candidate.macs,
            size_bytes=size_of(folder / self.runtime.file),
            seconds=watch.seconds,
            origin=origin,
        )

    def _check_device(self, failure: CandidateFailure) -> None:
        """Is it the candidate, or is the device gone? Raises `RunError` if the dense model doesn't run any more either."""
        scratch = self.run / "baseline" / ".outputs-check.npz"
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

    def _write_and_score(self, candidate: Candidate, folder: Path, watch: Stopwatch) -> Measurement:
        """The candidate's files, and the metric of what was written."""
        with watch.stage("export"):
            cut_from_dense = self._write(candidate.module, candidate.keeps, folder / self.runtime.file, candidate.drop)
            candidate.write_recipe(folder)
        try:
            return self._score_file(candidate, folder, watch)
        except CandidateFailure as failure:
            if not cut_from_dense or failure.stage not in ("run", "parity"):
                raise
            # A gap in the ONNX rules must not cost candidates: from here on each is exported.
            self.pruner.template.reason = f"a file cut from the dense one was wrong ({failure.reason})"
            with watch.stage("export"):
                self._write(candidate.module, candidate.keeps, folder / self.runtime.file, candidate.drop)
            return self._score_file(candidate, folder, watch)

    def _score_file(self, candidate: Candidate, folder: Path, watch: Stopwatch) -> Measurement:
        with watch.stage("evaluate"):
            self.bench.load("candidate", folder / self.runtime.file)
            metric, outputs = self.score("candidate", self.validation)
            self._check_parity(candidate.module, outputs)
        return metric

    def ensure_files(self, trial: Trial, weights: bool) -> Path:
        """The candidate's folder with model.onnx, recipe.json and, if asked for, model.safetensors.

        A folder that was cleared away or lost is made again from the recipe.
        """
        folder = self.folder(trial.number)
        missing = not (folder / self.runtime.file).is_file() or not (folder / "recipe.json").is_file()
        if missing or (weights and not (folder / "model.safetensors").is_file()):
            candidate = self.pruner.prune(trial.recipe)
            if missing:
                self._write(candidate.module, candidate.keeps, folder / self.runtime.file, candidate.drop)
                candidate.write_recipe(folder)
            if weights:
                export.to_safetensors(candidate.module, folder / "model.safetensors")
        return folder

    def _write(self, module: torch.nn.Module, keeps: Mapping[str, torch.Tensor], path: Path, drop: Collection[str] = ()) -> bool:
        """The file that the runtime runs, in its format and precision. Was it cut from the dense ONNX file?"""
        if path.suffix == ".pt2":
            try:
                export.to_pt2(module, self.workload.example_inputs, path)
            except Exception as error:  # torch.export raises its own types
                first = (str(error).strip().splitlines() or [""])[0]
                raise CandidateFailure("export", f"{type(error).__name__}: {first}") from error
            return False
        cut = self.pruner.template.write(module, keeps, path, drop)
        if (precision := self.runtime.precision_of_file(self.target.precision)) != "fp32":
            export.convert(path, precision)
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
            with (self.run / SAMPLES).open("a") as handle:
                handle.write(json.dumps(line) + "\n")

    def _check_parity(self, module: torch.nn.Module, outputs: Outputs) -> None:
        """The file must compute what the module computes."""
        expected = evaluate.torch_outputs(module, self.workload.batches("validation"), PARITY_EXAMPLES)
        got = outputs[0][0][: len(expected)]
        if got.shape != expected.shape:
            raise CandidateFailure(
                "parity", f"the runtime's output has shape {tuple(got.shape)}, PyTorch's {tuple(expected.shape)}"
            )
        scale = max(float(expected.abs().max()), 1e-30)
        difference = float((got - expected.cpu()).abs().max()) / scale
        if not difference <= PARITY_TOLERANCES[self.target.precision]:
            raise CandidateFailure("parity", f"the runtime's outputs differ from PyTorch's by {difference:.2g} (relative)")


def quantised(path: Path) -> bool:
    """Does an ONNX file hold integer operators or Q/DQ nodes?"""
    kinds = {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}
    return any("QuantizeLinear" in kind or "Integer" in kind or kind.startswith("QLinear") for kind in kinds)


def size_of(model: Path) -> int:
    """Bytes of an ONNX file and of the weights beside it."""
    return sum(path.stat().st_size for path in model.parent.glob(model.name + "*"))


def speedup_of(paired: dict[str, Any]) -> Measurement:
    """Speedup of a paired measurement, with how it was obtained."""
    wanted = "clock wall_speedup contended outliers throttled converged quads session_sd log_ratios passed".split()  # noqa: SIM905
    conditions: dict[str, Any] = {key: paired[key] for key in wanted if key in paired}
    if "conditions" in paired:
        conditions["machine"] = paired["conditions"]
    return Measurement(paired["speedup"], "x", paired["ci_low"], paired["ci_high"], paired["quads"], conditions)


def latency_of(paired: dict[str, Any]) -> Measurement:
    """Seconds for one batch."""
    conditions = {"clock": paired["clock"], "wall_s": paired["wall_latency_s"], "dense_s": paired["dense_latency_s"]}
    return Measurement(paired["latency_s"], "s", paired["latency_low_s"], paired["latency_high_s"], paired["quads"], conditions)
