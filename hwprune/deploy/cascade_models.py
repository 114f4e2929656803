"""What a run's files say about cascades: outputs, confidences and times of every model of its front."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hwprune.deploy.cascade_choice import CascadeStep
from hwprune.deploy.cascade_files import DENSE, SECOND
from hwprune.deploy.target_of_run import profile
from hwprune.errors import UsageError
from hwprune.latency.availability import missing
from hwprune.latency.bench import Bench
from hwprune.latency.cascade_runner import ExitRule
from hwprune.latency.samples import example_shapes
from hwprune.records.record import Record, read_record
from hwprune.records.target import Target
from hwprune.workload import confidence, metrics, sample_files, scoring
from hwprune.workload.metrics import Metric
from hwprune.workload.reading import CLASSES, DECISIONS, Reading, judged, readings
from hwprune.workload.scoring import Outputs

FIRST_LOOK, FIRST_LOOK_S = 50, 5.0
"""Examples, and seconds, from which a pair is chosen."""


@dataclass(frozen=True, slots=True)
class Side:
    """Outputs of all models on one split."""

    outputs: Mapping[str, Outputs]
    targets: Sequence[Any]


class Cascader:
    """What a run's files say about cascades.

    Args:
        run: a run directory with a measured front of ONNX files.
        metric: where the run's is a function of the user's; must have scores by example.

    Raises:
        UsageError: the run can't give a cascade; says why.
    """

    def __init__(self, run: Path, metric: Metric | None = None) -> None:
        self.run, self.record = run, read_record(run)
        self.target = _target(self.record)
        found = metric or metrics.of_record(self.record.data["workload"])
        if found is None or found.over_set is not None:
            raise UsageError(
                f"a cascade needs a score for each example, and {self.record.data['workload']['metric']} "
                "is a function of the workload's that hwprune does not know: name it with --workload"
            )
        self.metric = found
        baseline = run / "baseline"
        self.models = {DENSE: baseline / "model.onnx"} | {
            str(point.trial): run / "candidates" / str(point.trial) / "model.onnx" for point in self.record.front
        }
        if apart := [key for key, path in self.models.items() if path.with_name(f"{path.name}.data").exists()]:
            raise UsageError(f"weights of {', '.join(apart)} lie in files of their own; a cascade needs models in one file each")
        self.example = baseline / "example.npz"
        if any(shape[:1] != (1,) for shape in example_shapes(self.example)):
            raise UsageError(
                "the run was measured with more than one example in a batch; a cascade divides batches, so that a batch takes as "
                "long as its hardest example: search with example inputs of one example"
            )
        self.files = {
            split: baseline / f"{split}.npz" for split in ("validation", "test") if (baseline / f"{split}.npz").is_file()
        }
        if "validation" not in self.files:
            raise UsageError(f"{baseline} holds no validation.npz, on which a threshold could be chosen")
        self.split = "test" if "test" in self.files else "validation"

    def make(self) -> Bench:
        return Bench(self.target, shapes=example_shapes(self.example))

    def sides(self, models: Mapping[str, Path]) -> dict[str, Side]:
        """Outputs of models on validation and test, by the target's runtime. Raises `CandidateFailure`."""
        found: dict[str, dict[str, Outputs]] = {split: {} for split in self.files}
        with tempfile.TemporaryDirectory() as folder, self.make() as bench:
            for key, path in models.items():
                bench.load("model", path)
                for split, samples in self.files.items():
                    bench.run("model", samples, Path(folder) / "outputs.npz")
                    found[split][key] = scoring.read_outputs(Path(folder) / "outputs.npz")
        return {split: Side(found[split], self._targets(split)) for split in self.files}

    def _targets(self, split: str) -> list[Any]:
        targets = sample_files.read_targets(self.files[split])
        if not self.metric.agreement and any(target is None for target in targets):
            raise UsageError(f"{self.files[split]} holds no targets that {self.metric.name} could be computed with")
        return targets

    def reading(self, side: Side) -> Reading:
        """How the answer is read. Raises `UsageError`: nothing says how sure a model is of it."""
        dense = side.outputs[DENSE]
        found = readings(self.metric, dense, () if self.metric.agreement else side.targets)
        looked_at = judged(self.metric, found, dense, side.targets) if self.metric.reads else found[:1]
        if not looked_at or looked_at[0].kind not in (CLASSES, DECISIONS):
            raise UsageError(
                "the model's output holds no scores of classes and no decisions: nothing says how sure it is of them"
            )
        return looked_at[0]

    def spec(self, key: str, side: Side, reading: Reading) -> dict[str, Any]:
        """The decision of a model, without its threshold; its probabilities are as often right as they say (Guo et al. 2017)."""
        fitted = confidence.confidence_temperature(self.metric, side.outputs[key], side.targets)
        return {
            "output": reading.place, "axis": reading.axis, "probabilities": reading.probabilities,
            "temperature": fitted or 1.0, "threshold": 1.0,
        }  # fmt: skip

    def trust(self, side: Side) -> tuple[float, float | None]:
        """The weight of labels in scores, and the dense model's temperature.

        A few hundred labels are lucky for some models and not for others; how probable the dense model holds the answers that
        change says more (see `hwprune.workload.confidence.estimated_drop`). One weight for all models, so that they can be
        compared.
        """
        dense = side.outputs[DENSE]
        temperature = confidence.confidence_temperature(self.metric, dense, side.targets)
        shares = []
        for key, outputs in side.outputs.items():
            if key != DENSE:
                scored = scoring.paired_drop(self.metric, outputs, dense, side.targets)
                shares.append(confidence.label_share(self.metric, outputs, dense, side.targets, temperature, scored))
        return median(shares), temperature

    def scores(self, side: Side, outputs: Outputs, trust: tuple[float, float | None]) -> np.ndarray[Any, Any]:
        """One score an example, larger is better."""
        dense = side.outputs[DENSE]
        labelled = scoring.by_example(self.metric, outputs, side.targets, dense).numpy()
        share, temperature = trust
        held = confidence.beliefs(self.metric, outputs, dense, side.targets, temperature)
        blended = labelled if held is None else share * labelled + (1 - share) * held.numpy()
        return blended if self.metric.higher_is_better else -blended

    def told(self, key: str) -> float | None:
        """What a model's drop is surely below, as its run tells it; None: an older run, which does not."""
        return 0.0 if key == DENSE else next(point.told_high for point in self.record.front if str(point.trial) == key)

    def seconds(
        self, files: Mapping[str, Path], systems: Mapping[str, Any] | None = None, passes: Mapping[str, Any] | None = None
    ) -> dict[str, float]:
        """Mean seconds of one example, called as an application calls it.

        Latencies of the front are of calls with bound inputs; of a model of some microseconds the call itself is a large share,
        and it is paid twice by examples that go on.

        Args:
            systems: see `hwprune.latency.bench.Bench.varying`; default: each file by itself.
            passes: of an early exit, whose second half has the key ``second``.
        """
        with self.make() as bench:
            for key, path in files.items():
                bench.load(key, path, shapes=passes["shapes"] if passes and key == SECOND else ())
            measured = bench.varying(
                systems or {key: {"steps": [key]} for key in files}, self.files["validation"], FIRST_LOOK, FIRST_LOOK_S
            )
        return {key: float(np.mean(times)) for key, times in measured.items()}

    def step(
        self, key: str, seconds: float, side: Side, rule: Mapping[str, Any], trust: tuple[float, float | None]
    ) -> CascadeStep:
        """A model, or the first half of one, with what decides about it.

        Args:
            side: holds its outputs, and the dense model's.
        """
        outputs = side.outputs[key]
        decide = ExitRule(rule)
        sure = np.concatenate([decide.confidence([x.numpy() for x in batch]) for batch in outputs])
        right = self.scores(side, outputs, trust)
        point = next((point for point in self.record.front if str(point.trial) == key), None)
        if point is not None and point.told_drop is not None:  # who was lucky with these labels was so with all of them
            right = right + (self.scores(side, side.outputs[DENSE], trust).mean() - point.told_drop - right.mean())
        return CascadeStep(key, seconds, right, sure, self.told(key) if key in self.models else None)


def _target(record: Record) -> Target:
    if not record.measured or not record.front:
        raise UsageError("a cascade is made from a run with a measured front")
    if record.data["target"].get("fleet"):
        raise UsageError("the run has several targets; a cascade is made for one: search for it alone")
    if record.model_file != "model.onnx":
        raise UsageError(f"the run measured {record.model_file} files; a cascade is made of ONNX files")
    target = profile(record.data)
    if reasons := missing(target):
        raise UsageError(f"target {target.name} can't be measured on this machine: {'; '.join(reasons)}")
    return target
