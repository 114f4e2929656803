"""`hwprune cascade`: two models of a front, of which the larger one runs only where the smaller one is not sure.

The pair and its threshold are chosen on validation (`hwprune.deploy.cascade_choice`), the accuracy is told on test, and the
latency is measured on single inputs beside the dense model and the best single model of the front. Two forms are delivered: two
files with a small runner, and one file with an ``If`` where the runtime takes it; whichever is faster there is the one to deploy.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from hwprune.common.files import dump_json, sha256, write_atomic
from hwprune.deploy.cascade_choice import Plan, Step, Wish, curve, plans
from hwprune.deploy.target_of_run import profile
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import cascade_runner, varying
from hwprune.latency.availability import missing
from hwprune.latency.bench import Bench
from hwprune.latency.cascade_runner import Decision
from hwprune.latency.samples import example_shapes, read_batches
from hwprune.latency.varying import Distribution
from hwprune.onnx_files import to_onnx
from hwprune.onnx_files.cascade_file import with_if
from hwprune.records.measurement import Measurement
from hwprune.records.record import Record, read_record
from hwprune.records.target import Target
from hwprune.workload import closeness, confidence, metrics, sample_files, scoring
from hwprune.workload.metrics import Metric, wilson
from hwprune.workload.reading import CLASSES, DECISIONS, Reading, judged, readings
from hwprune.workload.scoring import Outputs

DENSE, TWO_FILES, ONE_FILE, SINGLE = "dense", "cascade", "one file", "single"
PROCESSES, EXAMPLES, LIMIT_S = 6, 300, 8.0
"""Fresh processes that measure (the extremes of six hold the median with 96.9 %), examples that each times, and its seconds."""
FIRST_LOOK, FIRST_LOOK_S = 50, 5.0
"""Examples, and seconds, from which a pair is chosen."""
CHECKED = 64
"""Examples on which the one file is compared with the two."""
RUNNER = "run_cascade.py"


@dataclass(frozen=True, slots=True)
class Side:
    """Outputs of all models on one split."""

    outputs: Mapping[str, Outputs]
    targets: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Told:
    """One system as it is told: accuracy on the split that chose nothing, and its latency over inputs."""

    name: str
    metric: Measurement
    drop: Measurement
    latency: Distribution

    def to_json(self) -> dict[str, Any]:
        return {"metric": self.metric.to_json(), "drop": self.drop.to_json(), "latency": self.latency.to_json()}


@dataclass(frozen=True, slots=True)
class CascadeResult:
    """A delivered cascade.

    Attributes:
        exits: share of the examples of ``split`` that end at the first model.
        systems: the dense model, the two files, the one file if there is one, and the best single model; by name.
        deploy: the faster form, ``cascade`` or ``one file``.
        without_one_file: why there is none, or None.
        single: key of the best single model within the same limit.
        over_single: mean latency of that over the deployed form's, on the same inputs.
        curve: (drop, mean seconds) of the pair for every threshold, on validation.
        models: (drop, seconds) of each model alone, on validation.
    """

    plan: Plan
    split: str
    exits: Measurement
    systems: Mapping[str, Told]
    deploy: str
    without_one_file: str | None
    single: str
    over_single: Measurement
    curve: Sequence[tuple[float, float]]
    models: Mapping[str, tuple[float, float]]
    share: bool


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

    def sides(self) -> dict[str, Side]:
        """Outputs of every model on validation and test, by the target's runtime. Raises `CandidateFailure`."""
        found: dict[str, dict[str, Outputs]] = {split: {} for split in self.files}
        with tempfile.TemporaryDirectory() as folder, self.make() as bench:
            for key, path in self.models.items():
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

    def scores(self, side: Side, outputs: Outputs) -> torch.Tensor:
        return scoring.by_example(self.metric, outputs, side.targets, side.outputs[DENSE])

    def seconds(self) -> dict[str, float]:
        """Mean seconds of one example on each model, called as an application calls it.

        Latencies of the front are of calls with bound inputs; of a model of some microseconds the call itself is a large share,
        and it is paid twice by examples that go on.
        """
        with self.make() as bench:
            for key, path in self.models.items():
                bench.load(key, path)
            systems = {key: {"steps": [key]} for key in self.models}
            measured = bench.varying(systems, self.files["validation"], FIRST_LOOK, FIRST_LOOK_S)
        return {key: float(np.mean(times)) for key, times in measured.items()}

    def steps(self, side: Side, reading: Reading, seconds: Mapping[str, float]) -> list[Step]:
        """All models with what decides between them."""
        sign = 1.0 if self.metric.higher_is_better else -1.0
        found = []
        for key, outputs in side.outputs.items():
            decide = Decision(self.spec(key, side, reading))
            sure = np.concatenate([decide.confidence([x.numpy() for x in batch]) for batch in outputs])
            found.append(Step(key, seconds[key], sign * self.scores(side, outputs).numpy(), sure))
        return found


def cascade(
    run: Path,
    out: Path,
    wish: Wish,
    pair: tuple[str, str] | None = None,
    metric: Metric | None = None,
    min_speedup: float | None = None,
    stage: Callable[[str], None] = lambda _: None,
) -> CascadeResult:
    """Choose, write, check and measure a cascade of a run's models.

    Args:
        out: folder for the files; see docs/files.md.
        wish: ``max_drop``, or ``max_seconds``, or neither and ``min_speedup`` beside it.
        pair: keys of the two models (a trial's number, or ``dense``); default: the best.

    Raises:
        UsageError: the run can't give one, or no pair keeps the wish.
        CandidateFailure: a model does not run any more.
    """
    found = Cascader(run, metric)
    stage(f"running {len(found.models)} models on {' and '.join(found.files)}")
    sides = found.sides()
    validation, told = sides["validation"], sides[found.split]
    reading = found.reading(validation)
    stage(f"timing {len(found.models)} models on single inputs")
    steps = {step.key: step for step in found.steps(validation, reading, found.seconds())}
    if min_speedup is not None:
        wish = replace(wish, max_seconds=steps[DENSE].seconds / min_speedup)
    chosen = _chosen(steps, wish, pair)
    first, second = steps[chosen.first], steps[chosen.second]
    spec = found.spec(chosen.first, validation, reading) | {"threshold": chosen.threshold}
    single = _best_single(steps, wish)
    out.mkdir(parents=True, exist_ok=True)
    stage("writing the files and comparing them")
    names = _write(found, chosen, spec, out)
    without = _write_one_file(found, chosen, spec, out)
    stage(f"measuring on {EXAMPLES} inputs in {PROCESSES} processes")
    latencies = _measured(found, out, names, spec, single, one_file=without is None)
    exits, systems = _told(found, told, spec, chosen, single, latencies)
    forms = {name: systems[name].latency.mean.value for name in (TWO_FILES, ONE_FILE) if name in systems}
    deploy = min(forms, key=lambda name: forms[name])
    alone = latencies[DENSE if single == DENSE else SINGLE]
    dense_mean = float(steps[DENSE].right.mean())
    result = CascadeResult(
        chosen, found.split, exits, systems, deploy, without, single,
        varying.speedup(latencies[deploy].seconds, alone.seconds),
        [(drop, seconds) for _, drop, seconds in curve(first, second, steps[DENSE].right)],
        {key: (dense_mean - float(step.right.mean()), step.seconds) for key, step in steps.items()},
        found.metric.name in ("top1", "top5", "agreement"),
    )  # fmt: skip
    _finish(found, result, spec, names, out)
    return result


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


def _chosen(steps: Mapping[str, Step], wish: Wish, pair: tuple[str, str] | None) -> Plan:
    for key in pair or ():
        if key not in steps:
            raise UsageError(f"the front has no trial {key}; there are {', '.join(steps)}")
    if pair and steps[pair[0]].seconds >= steps[pair[1]].seconds:
        raise UsageError(f"{pair[0]} is not faster than {pair[1]}: name the faster one first")
    candidates = [steps[key] for key in pair] if pair else list(steps.values())
    found = plans(candidates, steps[DENSE].right, wish)
    if not found:
        raise UsageError("no two models of the front keep these limits in any order, judged on examples that chose no threshold")
    return found[0]


def _best_single(steps: Mapping[str, Step], wish: Wish) -> str:
    """The model that would be delivered alone within the same limits, judged on the same examples."""
    dense = steps[DENSE].right.mean()
    if wish.max_drop is not None:
        fits = [step for step in steps.values() if dense - step.right.mean() <= wish.max_drop]
        return min(fits, key=lambda step: step.seconds).key  # the dense model fits
    fits = [step for step in steps.values() if step.seconds <= (wish.max_seconds or 0.0)]
    return max(fits or list(steps.values()), key=lambda step: float(step.right.mean())).key


def _write(found: Cascader, plan: Plan, spec: Mapping[str, Any], out: Path) -> dict[str, Path]:
    """The two files, their runner and the samples; key -> file."""
    files = {plan.first: out / "first.onnx", plan.second: out / "second.onnx"}
    for key, path in files.items():
        shutil.copyfile(found.models[key], path)
    shutil.copyfile(Path(cascade_runner.__file__), out / RUNNER)
    shutil.copyfile(found.files[found.split], out / "samples.npz")
    write_atomic(
        out / "cascade.json", dump_json({"schema": 1, "steps": [p.name for p in files.values()], "decision": dict(spec)})
    )
    return files


def _write_one_file(found: Cascader, plan: Plan, spec: Mapping[str, Any], out: Path) -> str | None:
    """``model.onnx`` with an ``If``; the reason why there is none, or None.

    Both branches are run: it must give what the two files give, on examples of which some end at each.
    """
    path = out / "model.onnx"
    try:
        made = with_if(onnx.load(found.models[plan.first]), onnx.load(found.models[plan.second]), spec)
        to_onnx.save_onnx(made, path)
        worst, counts = compare(
            found.make, {ONE_FILE: path, "first": out / "first.onnx", "second": out / "second.onnx"}, spec, out
        )
    except (UsageError, CandidateFailure) as error:
        path.unlink(missing_ok=True)
        return error.reason if isinstance(error, CandidateFailure) else str(error)
    if not worst <= closeness.TOLERANCES[found.target.precision]:
        path.unlink(missing_ok=True)
        return f"the one file differs from the two by {worst:.2g} of the largest output"
    if not all(counts):
        return None  # every example, or none, ends at the first: one branch alone could be compared
    return None


def compare(
    make: Callable[[], Bench], files: Mapping[str, Path], spec: Mapping[str, Any], folder: Path
) -> tuple[float, tuple[int, int]]:
    """The largest relative difference of the one file from the two on single examples, and how many of these took each branch.

    Examples that end at the first model and examples that go on are taken in turn, as far as there are both.

    Args:
        files: ``one file``, ``first`` and ``second``.
        folder: holds ``samples.npz``.

    Raises:
        CandidateFailure: a file does not run.
    """
    decide = Decision(spec)
    singles = varying.drawn(read_batches(str(folder / "samples.npz")), 8 * CHECKED)
    with tempfile.TemporaryDirectory() as scratch, make() as bench:
        samples, out = Path(scratch) / "samples.npz", Path(scratch) / "outputs.npz"
        sample_files.write_batches([(tuple(torch.from_numpy(x) for x in one), None) for one in singles], samples)
        outputs: dict[str, Outputs] = {}
        for name, path in files.items():
            bench.load("model", path)
            bench.run("model", samples, out)
            outputs[name] = scoring.read_outputs(out)
    sure = [bool(decide.sure([x.numpy() for x in batch]).all()) for batch in outputs["first"]]
    ends, goes_on = ([i for i, value in enumerate(sure) if value is wanted][:CHECKED] for wanted in (True, False))
    worst = 0.0
    for places, name in ((ends, "first"), (goes_on, "second")):
        if places:
            mine, wanted = ([outputs[key][i] for i in places] for key in (ONE_FILE, name))
            worst = max(worst, scoring.largest_difference(mine, wanted))
    return worst, (len(ends), len(goes_on))


def _measured(
    found: Cascader, out: Path, names: Mapping[str, Path], spec: Mapping[str, Any], single: str, *, one_file: bool
) -> dict[str, Distribution]:
    first, second = names.values()
    loaded = {DENSE: found.models[DENSE], "first": first, "second": second}
    systems: dict[str, dict[str, Any]] = {
        DENSE: {"steps": [DENSE]}, TWO_FILES: {"steps": ["first", "second"], "decision": dict(spec)},
    }  # fmt: skip
    if one_file:
        loaded[ONE_FILE], systems[ONE_FILE] = out / "model.onnx", {"steps": [ONE_FILE]}
    if single != DENSE:
        loaded[SINGLE], systems[SINGLE] = found.models[single], {"steps": [SINGLE]}
    return distributions_of(found.make, loaded, systems, found.files[found.split])


def distributions_of(
    make: Callable[[], Bench], files: Mapping[str, Path], systems: Mapping[str, Mapping[str, Any]], samples: Path
) -> dict[str, Distribution]:
    """Latency of systems over inputs, from fresh processes; files are loaded in turned order. Raises `CandidateFailure`."""
    processes = []
    for number in range(PROCESSES):
        with make() as bench:
            keys = list(files)
            for key in keys[number % len(keys) :] + keys[: number % len(keys)]:  # who is loaded first gets other memory
                bench.load(key, files[key])
            processes.append(bench.varying(systems, samples, EXAMPLES, LIMIT_S))
    return varying.distributions(processes, DENSE)


def _told(
    found: Cascader, side: Side, spec: Mapping[str, Any], plan: Plan, single: str, latencies: Mapping[str, Distribution]
) -> tuple[Measurement, dict[str, Told]]:
    """Accuracies on the split that chose nothing, and the share of examples that end at the first model."""
    outputs, ended, count = joined(Decision(spec), side.outputs[plan.first], side.outputs[plan.second])
    low, high = wilson(ended / count, count)
    exits = Measurement(ended / count, "share", low, high, count)
    of = {DENSE: side.outputs[DENSE], TWO_FILES: outputs, ONE_FILE: outputs, SINGLE: side.outputs[single]}
    systems = {}
    for name, latency in latencies.items():
        metric, drop = scoring.score_and_drop(found.metric, of[name], side.outputs[DENSE], side.targets)
        systems[name] = Told(name, metric, drop, latency)
    return exits, systems


def joined(decide: Decision, first: Outputs, second: Outputs) -> tuple[Outputs, int, int]:
    """Outputs of the cascade, how many examples end at the first model, and how many there are."""
    outputs: Outputs = []
    ended = count = 0
    for mine, theirs in zip(first, second, strict=True):
        sure = torch.from_numpy(decide.sure([x.numpy() for x in mine]))
        ended, count = ended + int(sure.sum()), count + len(sure)
        outputs.append(tuple(torch.where(sure.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(mine, theirs, strict=True)))
    return outputs, ended, count


def _finish(found: Cascader, result: CascadeResult, spec: Mapping[str, Any], names: Mapping[str, Path], out: Path) -> None:
    """cascade.json with everything that was measured, and the dense model beside it for `verify`."""
    shutil.copyfile(found.models[DENSE], out / "dense.onnx")
    data = found.record.data
    listed = [path.name for path in names.values()] + [RUNNER, "samples.npz", "dense.onnx"]
    listed += ["model.onnx"] if result.without_one_file is None else []
    facts: dict[str, Any] = {
        "schema": 1, "steps": [path.name for path in names.values()], "decision": dict(spec), "deploy": result.deploy,
        "trials": [result.plan.first, result.plan.second], "single": result.single,
        "over_single": result.over_single.to_json(), "without_one_file": result.without_one_file,
        "validation": {"drop": result.plan.drop, "seconds": result.plan.seconds, "exits": result.plan.exits},
        "split": result.split, "exits": result.exits.to_json(),
        "systems": {name: told.to_json() for name, told in result.systems.items()},
        "workload": {key: data["workload"].get(key) for key in ("name", "metric", "class_axis", "source")},
        "target": data["target"], "fingerprint": data["fingerprint"],
        "files": {name: sha256(out / name) for name in listed},
    }  # fmt: skip
    write_atomic(out / "cascade.json", dump_json(facts))
