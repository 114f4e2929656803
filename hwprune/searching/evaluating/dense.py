"""The dense model: exported, run, scored and timed as every candidate is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from hwprune.errors import CandidateFailure, RunError, WorkloadError
from hwprune.latency.bench import Bench
from hwprune.latency.source import Source
from hwprune.pruning.pruner import Pruner
from hwprune.records.measurement import Measurement
from hwprune.records.target import Target
from hwprune.searching.evaluating import screen
from hwprune.searching.evaluating.candidate_files import CandidateFiles, size_of
from hwprune.searching.evaluating.scorer import CHUNK, FileScorer, Split
from hwprune.workload import batches, data_checks, sample_files, scoring
from hwprune.workload.workload import Workload

EXAMPLE, SCREEN = "example.npz", "screen.npz"


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


class DenseModel:
    """The dense model's files, samples and numbers in one folder.

    Attributes:
        home: the folder.
        example: the samples whose latency is measured.
        path: the file that the runtime runs.
        validation: its samples, with the dense model's outputs.
        screen: a random sample of them, on which candidates are looked at first; None: all at once.
        calibration_sha256: identifies the calibration data.
    """

    def __init__(
        self, pruner: Pruner, bench: Bench, target: Target, files: CandidateFiles, scorer: FileScorer, home: Path
    ) -> None:
        self._pruner, self._bench, self._target, self._files, self._scorer = pruner, bench, target, files, scorer
        self.home = home
        self.example = home / EXAMPLE
        self.path = home / files.name
        self.validation = Split(home / "validation.npz", [])
        self.screen: Split | None = None
        self.calibration_sha256 = ""
        self._test: Split | None = None
        self._baseline: Baseline | None = None

    @property
    def baseline(self) -> Baseline:
        """What `prepare` measured."""
        assert self._baseline is not None, "the dense model is not prepared"
        return self._baseline

    def prepare(self, source: Source) -> Baseline:
        """Export, run, score and time the dense model.

        Raises:
            WorkloadError: the data, the metric or the dense outputs can't be used.
            RunError: the dense model can't be exported or run.
        """
        self._write_samples()
        dense = self._pruner.graph.module
        try:
            self._files.write(dense, {}, self.path)
            self._check_integers()
            metric = self._score_validation()
            self._scorer.check_parity(dense, self.validation.dense, self.validation)
            paired = source.dense(self.path)
        except CandidateFailure as failure:
            if failure.stage == "evaluate":
                raise WorkloadError(f"the dense model can't be scored: {failure.reason}") from failure
            untraced = (
                f". It can't be traced either, which may be why: {self._pruner.untraceable}" if self._pruner.untraceable else ""
            )
            raise RunError(f"the dense model can't be measured ({failure.stage}): {failure.reason}{untraced}") from failure
        self._baseline = Baseline(
            metric=metric,
            latency=paired.latency,
            self_speedup=paired.speedup,
            params=sum(p.numel() for p in dense.parameters()),
            macs=self._pruner.macs({}),
            size_bytes=size_of(self.path),
            split="validation",
        )
        return self._baseline

    def _write_samples(self) -> None:
        workload = self._pruner.workload
        data_checks.check_batches(workload, self._pruner.graph.module)
        example = Workload(
            workload.name, workload.model, workload.example_inputs, [], [(workload.example_inputs, torch.zeros(1))]
        )
        sample_files.write_samples(example, "validation", self.example)
        digest = hashlib.sha256()
        for inputs, _ in workload.batches("calibration"):  # a fault of the data must come up now, not in every trial
            for tensor in inputs:
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.calibration_sha256 = digest.hexdigest()
        self.validation.targets = sample_files.write_samples(workload, "validation", self.validation.file)

    def _score_validation(self) -> Measurement:
        self._bench.load("dense", self.path, keep=True)
        metric, self.validation.dense = self._scorer.score("dense", self.validation)
        self._check_labels("validation", self.validation)
        if self._scorer.threads is not None and self._scorer.divides_batches(self.path, self.validation):
            self._scorer.chunk = CHUNK
            metric, self.validation.dense = self._scorer.score("dense", Split(self.validation.file, self.validation.targets))
        self.screen = self._draw_screen()
        return metric

    def _check_integers(self) -> None:
        """An int8 target runs what the file quantises: one without Q/DQ nodes would run in 32 bits under the name of int8."""
        if self._target.precision == "int8" and not is_quantised(self.path):
            raise WorkloadError(
                f"target {self._target.name} is int8, but the model is not quantised (no QuantizeLinear or integer operators): "
                "it would run in floating point. Bring a quantised model.onnx, or choose another target"
            )

    def test_split(self) -> Split:
        """Samples of the test split with the dense model's outputs on them; written once."""
        if self._test is None:
            test = Split(self.home / "test.npz", [])
            test.targets = sample_files.write_samples(self._pruner.workload, "test", test.file)
            _, test.dense = self._scorer.score("dense", test)
            self._check_labels("test", test)
            self._test = test
        return self._test

    def first_test_score(self) -> Measurement | None:
        """The dense model's score on some test examples, to hold against validation's before a search; nothing selects on it.

        None: there is no test split, the metric's scores on two splits can't be compared, or the examples can't be scored (which
        the final round tells).
        """
        workload = self._pruner.workload
        if workload.test is None or workload.scoring.name not in data_checks.COMPARED:
            return None
        few = batches.sample(workload, "test", data_checks.FIRST_LOOK, data_checks.FIRST_LOOK_BYTES)
        split = Split(self.home / ".first-look.npz", [])
        try:
            split.targets = sample_files.write_samples(replace(workload, test=few), "test", split.file)
            outputs = self._scorer.outputs("dense", split)
            data_checks.check_labels(workload, "test", outputs, split.targets)
            return self._scorer.metric_of(outputs, split)
        except CandidateFailure:
            return None
        finally:
            split.file.unlink(missing_ok=True)

    def check_device(self, failure: CandidateFailure) -> None:
        """Is it the candidate, or is the device gone? Raises `RunError` if the dense model doesn't run any more either."""
        scratch = self.home / ".outputs-check.npz"
        try:
            self._bench.load("dense_copy", self.path)
            self._bench.run("dense_copy", self.example, scratch)
            self._bench.drop("dense_copy")
        except CandidateFailure as second:
            raise RunError(
                f"the device does not run the dense model any more ({second.reason}); before, a candidate failed with: "
                f"{failure.reason}. Finished trials are kept; go on with --resume when it is back"
            ) from failure
        finally:
            scratch.unlink(missing_ok=True)

    def _check_labels(self, name: str, split: Split) -> None:
        data_checks.check_labels(self._pruner.workload, name, split.dense, split.targets)

    def _draw_screen(self) -> Split | None:
        """A random sample of validation; None if there is none, or the model mixes the examples of a batch."""
        found = screen.draw(self.validation, self.home / SCREEN)
        if found is None:
            return None
        in_their_batches = [batch[:1] for batch in found.dense]
        try:
            found.dense = self._scorer.outputs("dense", found)
        except CandidateFailure:
            return None
        difference = scoring.largest_difference([batch[:1] for batch in found.dense], in_their_batches)
        return found if difference <= self._scorer.tolerance else None


def is_quantised(path: Path) -> bool:
    """Does an ONNX file hold integer operators or Q/DQ nodes?"""
    kinds = {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}
    return any("QuantizeLinear" in kind or "Integer" in kind or kind.startswith("QLinear") for kind in kinds)
