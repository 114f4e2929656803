"""`hwprune cascade`: two models of a front, of which the larger one runs only where the smaller one is not sure.

The pair and its threshold are chosen on validation (`hwprune.deploy.cascade_choice`), the accuracy is told on test, and the
latency is measured on single inputs beside the dense model and the best single model of the front. Two forms are delivered: two
files with a small runner, and one file with an ``If`` where the runtime takes it; whichever is faster there is the one to deploy.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from hwprune.common.files import dump_json, sha256, write_atomic
from hwprune.deploy import cascade_files
from hwprune.deploy.cascade_choice import CascadePlan, CascadeStep, Wish, curve, plans
from hwprune.deploy.cascade_files import DENSE, ONE_FILE, SINGLE, TWO_FILES, compare, distributions_of, joined
from hwprune.deploy.cascade_models import Cascader, Side
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import cascade_runner, varying
from hwprune.latency.cascade_runner import ExitRule
from hwprune.latency.varying import Distribution
from hwprune.onnx_files import to_onnx
from hwprune.onnx_files.cascade_file import with_if
from hwprune.records.measurement import Measurement
from hwprune.workload import closeness, scoring
from hwprune.workload.metrics import Metric, wilson

RUNNER = "run_cascade.py"


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

    plan: CascadePlan
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
    stage(f"measuring on {cascade_files.EXAMPLES} inputs in {cascade_files.PROCESSES} processes")
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


def _chosen(steps: Mapping[str, CascadeStep], wish: Wish, pair: tuple[str, str] | None) -> CascadePlan:
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


def _best_single(steps: Mapping[str, CascadeStep], wish: Wish) -> str:
    """The model that would be delivered alone within the same limits, judged on the same examples."""
    dense = steps[DENSE].right.mean()
    if wish.max_drop is not None:
        fits = [step for step in steps.values() if dense - step.right.mean() <= wish.max_drop]
        return min(fits, key=lambda step: step.seconds).key  # the dense model fits
    fits = [step for step in steps.values() if step.seconds <= (wish.max_seconds or 0.0)]
    return max(fits or list(steps.values()), key=lambda step: float(step.right.mean())).key


def _write(found: Cascader, plan: CascadePlan, spec: Mapping[str, Any], out: Path) -> dict[str, Path]:
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


def _write_one_file(found: Cascader, plan: CascadePlan, spec: Mapping[str, Any], out: Path) -> str | None:
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


def _told(
    found: Cascader, side: Side, spec: Mapping[str, Any], plan: CascadePlan, single: str, latencies: Mapping[str, Distribution]
) -> tuple[Measurement, dict[str, Told]]:
    """Accuracies on the split that chose nothing, and the share of examples that end at the first model."""
    outputs, ended, count = joined(ExitRule(spec), side.outputs[plan.first], side.outputs[plan.second])
    low, high = wilson(ended / count, count)
    exits = Measurement(ended / count, "share", low, high, count)
    of = {DENSE: side.outputs[DENSE], TWO_FILES: outputs, ONE_FILE: outputs, SINGLE: side.outputs[single]}
    systems = {}
    for name, latency in latencies.items():
        metric, drop = scoring.score_and_drop(found.metric, of[name], side.outputs[DENSE], side.targets)
        systems[name] = Told(name, metric, drop, latency)
    return exits, systems


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
