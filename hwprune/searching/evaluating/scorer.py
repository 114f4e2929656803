"""Running an exported file on evaluation samples: its metric, its divergence from dense, its parity with PyTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hwprune import runtimes
from hwprune.errors import CandidateFailure, WorkloadError
from hwprune.latency.bench import Bench
from hwprune.latency.samples import read_batches
from hwprune.records.measurement import Measurement
from hwprune.records.target import Target
from hwprune.runtimes import conversion
from hwprune.workload import closeness, confidence, scoring, set_scoring
from hwprune.workload.metrics import Metric
from hwprune.workload.scoring import Outputs
from hwprune.workload.set_scoring import SetScore
from hwprune.workload.workload import Workload

PARITY_EXAMPLES = 8
CHUNK = 32
"""Examples run at a time where a model lets its batches be divided: activations that fit into a CPU's cache, and no new pages."""
CHUNK_TOLERANCE = 1e-5
"""Largest difference that dividing a batch may make, relative to the largest output; a model that mixes examples makes more."""


@dataclass(slots=True)
class Split:
    """Evaluation samples in a file, their targets, and the dense model's outputs on them."""

    file: Path
    targets: list[Any]
    dense: Outputs = field(default_factory=list)
    _temperatures: list[float | None] = field(default_factory=list)
    _dense_scores: list[SetScore] = field(default_factory=list)

    def temperature(self, metric: Metric) -> float | None:
        """See `hwprune.workload.confidence.confidence_temperature`."""
        if not self._temperatures:
            self._temperatures.append(confidence.confidence_temperature(metric, self.dense, self.targets))
        return self._temperatures[0]

    def known(self, metric: Metric) -> SetScore | None:
        """What a metric of a whole split gives of the dense model's outputs, computed once; None: it has scores by example."""
        if metric.over_set is None:
            return None
        if not self._dense_scores:
            self._dense_scores.append(set_scoring.evaluate(metric, self.dense, self.targets, self.dense))
        return self._dense_scores[0]

    @property
    def examples(self) -> int:
        return sum(len(batch[0]) for batch in self.dense)


class FileScores(NamedTuple):
    """What a file's outputs on a split say.

    Attributes:
        metric: of the file.
        divergence: from the dense model's outputs.
        drop: of the metric from the dense model's, compared example by example.
        estimated_drop: what that and the dense model's confidence say of other examples.
    """

    metric: Measurement
    divergence: Measurement
    drop: Measurement
    estimated_drop: Measurement


class FileScorer:
    """Runs files in the bench's process and scores what comes out.

    Attributes:
        threads: for outputs, which are the same with any number of threads and are not timed; None: the target's own.
        chunk: examples run at a time; 0: whole batches.
        tolerance: largest difference between the runtime's outputs and PyTorch's, relative to the largest output. Reduced
            precision keeps 11 or 8 bits and errors add up over the layers; what it costs shows in the metric.
    """

    def __init__(self, workload: Workload, bench: Bench, target: Target, home: Path) -> None:
        self.workload, self.metric = workload, workload.scoring
        self._bench, self._target, self._home = bench, target, home
        runtime = runtimes.get(target.runtime)
        on_this_cpu = runtime.device == "cpu" and runtime.file.endswith(".onnx") and bench.here
        self.threads = max(target.threads, len(os.sched_getaffinity(0))) if on_this_cpu else None
        self.chunk = 0
        self.tolerance = max(closeness.TOLERANCES[kind] for kind in (target.precision, closeness.of_model(workload.model)))
        if runtime.convert_s:  # it computes as its own kernels do, not as another build of the same library
            self.tolerance = max(self.tolerance, conversion.TOLERANCE)

    def outputs(self, key: str, split: Split) -> Outputs:
        """Outputs of a loaded model on a split. Raises `CandidateFailure`."""
        out = self._home / f".outputs-{key}.npz"
        try:
            self._bench.run(key, split.file, out, chunk=self.chunk)
            return scoring.read_outputs(out)
        finally:
            out.unlink(missing_ok=True)

    def score(self, key: str, split: Split) -> tuple[Measurement, Outputs]:
        """Metric and outputs of a loaded model on a split. Raises `CandidateFailure`."""
        outputs = self.outputs(key, split)
        return self.metric_of(outputs, split), outputs

    def metric_of(self, outputs: Outputs, split: Split) -> Measurement:
        return scoring.score(self.metric, outputs, split.targets, split.dense or None)

    def drop(self, outputs: Outputs, split: Split) -> Measurement:
        """The drop from the dense model on the same examples, with its interval."""
        return scoring.score_and_drop(self.metric, outputs, split.dense, split.targets, split.known(self.metric))[1]

    def divergence(self, outputs: Outputs, split: Split) -> Measurement:
        """How far the outputs are from the dense model's."""
        return scoring.divergence(self.metric, outputs, split.dense, split.targets)

    def scores(self, outputs: Outputs, split: Split) -> FileScores:
        """Everything that outputs on the whole split say. Raises `CandidateFailure`."""
        known = split.known(self.metric)
        try:
            metric, drop = scoring.score_and_drop(self.metric, outputs, split.dense, split.targets, known)
        except WorkloadError as error:  # what could score the dense model: this candidate's outputs are to blame
            raise CandidateFailure("evaluate", str(error)) from error
        estimated = confidence.estimated_drop(
            self.metric, outputs, split.dense, split.targets, split.temperature(self.metric), drop
        )
        return FileScores(metric, self.divergence(outputs, split), drop, estimated)

    def score_file(self, path: Path, split: Split) -> FileScores:
        """Scores of a file that need not compute what any module computes. Raises `CandidateFailure`."""
        self._bench.load("candidate", path, threads=self.threads)
        outputs = self.outputs("candidate", split)
        self._bench.drop("candidate")
        return self.scores(outputs, split)

    def divides_batches(self, model: Path, split: Split) -> bool:
        """Are outputs the same when the first batch is run in parts?"""
        whole = split.dense[0]
        out = self._home / ".outputs-parts.npz"
        try:
            self._bench.load("dense_copy", model)
            self._bench.run("dense_copy", split.file, out, 0, 1, CHUNK)
            parts = scoring.read_outputs(out)[0]
        except CandidateFailure:  # a fixed batch size, or an output without batch
            return False
        finally:
            out.unlink(missing_ok=True)
            if self._bench.alive:
                self._bench.drop("dense_copy")
        return all(same_outputs(part, output) for part, output in zip(parts, whole, strict=True))

    def check_parity(self, module: torch.nn.Module, outputs: Outputs, split: Split) -> None:
        """Raises `CandidateFailure` (stage ``parity``) if the file does not compute what the module computes."""
        _, inputs = next(read_batches(str(split.file)))
        home = next(module.parameters(), torch.empty(0)).device
        expected = scoring.torch_outputs(module, [torch.from_numpy(array).to(home) for array in inputs], PARITY_EXAMPLES)
        for place, (whole, wanted) in enumerate(zip(outputs[0], expected, strict=True)):
            which = f"output {place + 1}" if len(expected) > 1 else "output"
            got = whole[: len(wanted)] if wanted.ndim else whole
            if got.shape != wanted.shape:
                raise CandidateFailure(
                    "parity", f"the runtime's {which} has shape {tuple(got.shape)}, PyTorch's {tuple(wanted.shape)}"
                )
            chooses = bool(getattr(module, "meta", {}).get("chooses"))
            difference = closeness.difference(got, wanted, chooses=chooses)
            if not difference <= self.tolerance:
                raise CandidateFailure("parity", f"the runtime's {which} differs from PyTorch's by {difference:.2g} (relative)")


def same_outputs(part: torch.Tensor, whole: torch.Tensor) -> bool:
    """Do two outputs agree but for rounding?"""
    return closeness.difference(part, whole) <= CHUNK_TOLERANCE
