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

from hwprune.common.files import dump_json, sha256, write_atomic
from hwprune.deploy import cascade_files, early_exits
from hwprune.deploy.cascade_choice import CascadePlan, CascadeStep, Wish, curve, pairs_of, plans
from hwprune.deploy.cascade_files import DENSE, ONE_FILE, SINGLE, TWO_FILES, TwoFiles, chained, compare, distributions_of, joined
from hwprune.deploy.cascade_models import Cascader, Side
from hwprune.deploy.early_exits import EarlyExit
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import cascade_runner, varying
from hwprune.latency.cascade_runner import ExitRule
from hwprune.latency.varying import Distribution
from hwprune.onnx_files import to_onnx
from hwprune.records.measurement import Measurement
from hwprune.workload import closeness, scoring
from hwprune.workload.metrics import Metric, wilson
from hwprune.workload.reading import Reading
from hwprune.workload.workload import Workload

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
    workload: Workload | None = None,
    stage: Callable[[str], None] = lambda _: None,
) -> CascadeResult:
    """Choose, write, check and measure a cascade of a run's models.

    Args:
        out: folder for the files; see docs/files.md.
        wish: ``max_drop``, or ``max_seconds``, or neither and ``min_speedup`` beside it.
        pair: keys of the two models (a trial's number, or ``dense``); default: the best.
        min_speedup: of the mean; the least drop is looked for.
        workload: early exits of the best single model and of the dense one instead of two models; gives data for their heads.

    Raises:
        UsageError: the run can't give one, or no pair keeps the wish.
        CandidateFailure: a model does not run any more.
    """
    found = Cascader(run, metric)
    stage(f"running {len(found.models)} models on {' and '.join(found.files)}")
    sides = found.sides(found.models)
    validation = sides["validation"]
    reading = found.reading(validation)
    rules = {key: found.spec(key, validation, reading) for key in found.models}
    stage(f"timing {len(found.models)} models on single inputs")
    seconds = found.seconds(found.models)
    steps = {key: found.step(key, seconds[key], validation, rules[key]) for key in found.models}
    if min_speedup is not None:
        wish = replace(wish, max_seconds=steps[DENSE].seconds / min_speedup)
    single = _best_single(steps, wish)
    with tempfile.TemporaryDirectory() as scratch:
        if workload is None:
            pairs = _asked(steps, pair)
            delivered = {
                (a.key, b.key): TwoFiles(found.models[a.key], found.models[b.key], found.models[a.key], found.models[b.key])
                for a, b in pairs
            }
        else:
            keys = list(dict.fromkeys((single, DENSE)))
            stage(f"dividing {' and '.join(keys)} and fitting heads")
            exits = early_exits.make(found, keys, workload, reading, Path(scratch))
            pairs, delivered = _of_exits(found, exits, sides, reading, steps, rules)
        plan = _best(pairs, steps[DENSE], wish, "models" if workload is None else "halves")
        chosen = delivered[plan.first, plan.second]
        rule = rules[plan.first] | {"threshold": plan.threshold} | ({} if chosen.passes is None else {"passes": chosen.passes})
        out.mkdir(parents=True, exist_ok=True)
        stage("writing the files and comparing them")
        chosen = _write(found, chosen, rule, out)
    without = _write_one_file(found, chosen, rule, out)
    stage(f"measuring on {cascade_files.EXAMPLES} inputs in {cascade_files.PROCESSES} processes")
    latencies = _measured(found, out, chosen, rule, single, one_file=without is None)
    whole = plan.second if chosen.passes is None else plan.first.split("@")[0]
    ended, systems = _told(found, sides[found.split], rule, (plan.first, whole, single), latencies)
    forms = {name: systems[name].latency.mean.value for name in (TWO_FILES, ONE_FILE) if name in systems}
    deploy = min(forms, key=lambda name: forms[name])
    alone = latencies[DENSE if single == DENSE else SINGLE]
    first, second = next((a, b) for a, b in pairs if (a.key, b.key) == (plan.first, plan.second))
    dense_mean = float(steps[DENSE].right.mean())
    result = CascadeResult(
        plan, found.split, ended, systems, deploy, without, single, varying.speedup(latencies[deploy].seconds, alone.seconds),
        [(drop, seconds) for _, drop, seconds in curve(first, second, steps[DENSE].right)],
        {key: (dense_mean - float(step.right.mean()), step.seconds) for key, step in steps.items() if key in found.models},
        found.metric.name in ("top1", "top5", "agreement"),
    )  # fmt: skip
    _finish(found, result, rule, chosen, out)
    return result


def _asked(steps: Mapping[str, CascadeStep], pair: tuple[str, str] | None) -> list[tuple[CascadeStep, CascadeStep]]:
    """All pairs of models, or the one that was asked for."""
    for key in pair or ():
        if key not in steps:
            raise UsageError(f"the front has no trial {key}; there are {', '.join(steps)}")
    if pair and steps[pair[0]].seconds >= steps[pair[1]].seconds:
        raise UsageError(f"{pair[0]} is not faster than {pair[1]}: name the faster one first")
    return pairs_of([steps[key] for key in pair] if pair else list(steps.values()))


def _of_exits(
    found: Cascader,
    exits: Sequence[EarlyExit],
    sides: dict[str, Side],
    reading: Reading,
    steps: Mapping[str, CascadeStep],
    rules: dict[str, dict[str, Any]],
) -> tuple[list[tuple[CascadeStep, CascadeStep]], dict[tuple[str, str], TwoFiles]]:
    """Pairs of halves, timed and scored; the outputs of the exits are added to ``sides``, their rules to ``rules``."""
    answers = {one.key: one.answer for one in exits}
    for split, side in found.sides(answers).items():
        sides[split] = Side({**sides[split].outputs, **side.outputs}, side.targets)
    pairs, delivered = [], {}
    for one in exits:
        rules[one.key] = found.spec(one.key, sides["validation"], replace(reading, place=0))
        files = {"answer": one.answer, "first": one.first, "second": one.second}
        always = {**rules[one.key], "threshold": 2.0, "passes": one.passes}
        both = found.seconds(files, {"answer": {"steps": ["first"]}, "both": {"steps": ["first", "second"], "decision": always}})
        first = found.step(one.key, both["answer"], sides["validation"], rules[one.key])
        rest = CascadeStep(
            f"{one.key} rest", max(both["both"] - both["answer"], 0.0), steps[one.model].right, steps[one.model].sure
        )
        pairs.append((first, rest))
        delivered[first.key, rest.key] = TwoFiles(one.first, one.second, one.answer, found.models[one.model], one.passes)
    return pairs, delivered


def _best(pairs: Sequence[tuple[CascadeStep, CascadeStep]], dense: CascadeStep, wish: Wish, what: str) -> CascadePlan:
    found = plans(pairs, dense.right, wish)
    if not found:
        raise UsageError(f"no two {what} keep these limits, judged on examples that chose no threshold")
    return found[0]


def _best_single(steps: Mapping[str, CascadeStep], wish: Wish) -> str:
    """The model that would be delivered alone within the same limits, judged on the same examples."""
    dense = steps[DENSE].right.mean()
    if wish.max_drop is not None:
        fits = [step for step in steps.values() if dense - step.right.mean() <= wish.max_drop]
        return min(fits, key=lambda step: step.seconds).key  # the dense model fits
    fits = [step for step in steps.values() if step.seconds <= (wish.max_seconds or 0.0)]
    return max(fits or list(steps.values()), key=lambda step: float(step.right.mean())).key


def _write(found: Cascader, pair: TwoFiles, rule: Mapping[str, Any], out: Path) -> TwoFiles:
    """The two files, their runner and the samples; where they are now."""
    copied = {"first.onnx": pair.first, "second.onnx": pair.second}
    if pair.passes is not None:  # what verify compares with
        copied |= {"answer.onnx": pair.answers, "whole.onnx": pair.whole}
    for name, path in copied.items():
        shutil.copyfile(path, out / name)
    shutil.copyfile(Path(cascade_runner.__file__), out / RUNNER)
    shutil.copyfile(found.files[found.split], out / "samples.npz")
    write_atomic(out / "cascade.json", dump_json({"schema": 1, "steps": ["first.onnx", "second.onnx"], "decision": dict(rule)}))
    first, second = out / "first.onnx", out / "second.onnx"
    return TwoFiles(
        first, second, *(first, second) if pair.passes is None else (out / "answer.onnx", out / "whole.onnx"), pair.passes
    )


def _write_one_file(found: Cascader, pair: TwoFiles, rule: Mapping[str, Any], out: Path) -> str | None:
    """``model.onnx`` with an ``If``; the reason why there is none, or None.

    Both branches are run: it must give what the two files give, on examples of which some end at each.

    Raises:
        CandidateFailure: the halves of an early exit do not give what the whole model gives.
    """
    tolerance = closeness.TOLERANCES[found.target.precision]
    if pair.passes is not None and not (apart := chained(found.make, pair, out / "samples.npz")) <= tolerance:
        raise CandidateFailure("parity", f"the two halves differ from the whole model by {apart:.2g} of the largest output")
    path = out / "model.onnx"
    try:
        to_onnx.save_onnx(pair.one_file(rule), path)
        worst, _ = compare(found.make, {ONE_FILE: path, "first": pair.answers, "second": pair.whole}, rule, out)
    except (UsageError, CandidateFailure) as error:
        path.unlink(missing_ok=True)
        return error.reason if isinstance(error, CandidateFailure) else str(error)
    if not worst <= tolerance:
        path.unlink(missing_ok=True)
        return f"the one file differs from the two by {worst:.2g} of the largest output"
    return None


def _measured(
    found: Cascader, out: Path, pair: TwoFiles, rule: Mapping[str, Any], single: str, *, one_file: bool
) -> dict[str, Distribution]:
    loaded = {DENSE: found.models[DENSE], "first": pair.first, "second": pair.second}
    systems: dict[str, dict[str, Any]] = {
        DENSE: {"steps": [DENSE]}, TWO_FILES: {"steps": ["first", "second"], "decision": dict(rule)},
    }  # fmt: skip
    if one_file:
        loaded[ONE_FILE], systems[ONE_FILE] = out / "model.onnx", {"steps": [ONE_FILE]}
    if single != DENSE:
        loaded[SINGLE], systems[SINGLE] = found.models[single], {"steps": [SINGLE]}
    return distributions_of(found.make, loaded, systems, found.files[found.split])


def _told(
    found: Cascader, side: Side, rule: Mapping[str, Any], keys: tuple[str, str, str], latencies: Mapping[str, Distribution]
) -> tuple[Measurement, dict[str, Told]]:
    """Accuracies on the split that chose nothing, and the share of examples that end at the first model.

    Args:
        keys: of the first model, of what examples that go on get, and of the best single one.
    """
    first, whole, single = keys
    outputs, ended, count = joined(ExitRule(rule), side.outputs[first], side.outputs[whole])
    low, high = wilson(ended / count, count)
    exits = Measurement(ended / count, "share", low, high, count)
    of = {DENSE: side.outputs[DENSE], TWO_FILES: outputs, ONE_FILE: outputs, SINGLE: side.outputs[single]}
    systems = {}
    for name, latency in latencies.items():
        metric, drop = scoring.score_and_drop(found.metric, of[name], side.outputs[DENSE], side.targets)
        systems[name] = Told(name, metric, drop, latency)
    return exits, systems


def _finish(found: Cascader, result: CascadeResult, rule: Mapping[str, Any], pair: TwoFiles, out: Path) -> None:
    """cascade.json with everything that was measured, and the dense model beside it for `verify`."""
    shutil.copyfile(found.models[DENSE], out / "dense.onnx")
    data = found.record.data
    listed = ["first.onnx", "second.onnx", RUNNER, "samples.npz", "dense.onnx"]
    listed += ["answer.onnx", "whole.onnx"] if pair.passes is not None else []
    listed += ["model.onnx"] if result.without_one_file is None else []
    facts: dict[str, Any] = {
        "schema": 1, "steps": ["first.onnx", "second.onnx"], "decision": dict(rule), "deploy": result.deploy,
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
