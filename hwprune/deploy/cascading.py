"""`hwprune cascade`: two models of a front, of which the larger one runs only where the smaller one is not sure.

The pair and its threshold are chosen on validation (`hwprune.deploy.cascade_choice`), the accuracy is told on test, and the
latency is measured on single inputs beside the dense model and the best single model of the front. Two forms are delivered: two
files with a small runner, and one file with an ``If`` where the runtime takes it; whichever is faster there is the one to deploy.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hwprune.common import formatting
from hwprune.deploy import cascade_files, early_exits
from hwprune.deploy.cascade_choice import NOBODY, CascadePlan, CascadeStep, Wish, curve, pairs_of, plans
from hwprune.deploy.cascade_files import DENSE, ONE_FILE, SINGLE, TWO_FILES, TwoFiles, distributions_of, joined
from hwprune.deploy.cascade_models import Cascader, Side
from hwprune.deploy.cascade_writing import CascadeResult, Told, finish, write, write_one_file
from hwprune.deploy.early_exits import EarlyExit
from hwprune.errors import UsageError
from hwprune.latency import varying
from hwprune.latency.cascade_runner import ExitRule
from hwprune.latency.varying import Distribution
from hwprune.records.measurement import Measurement
from hwprune.workload import scoring
from hwprune.workload.metrics import Metric, wilson
from hwprune.workload.reading import Reading
from hwprune.workload.workload import Workload


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
        UsageError: the run can't give one, no pair keeps the wish, or the folder holds something else.
        CandidateFailure: a model does not run any more.
    """
    _check_wish(wish, min_speedup)
    _check_folder(run, out)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        result = _made(run, part, wish, pair, metric, min_speedup, workload, stage)
        shutil.rmtree(out, ignore_errors=True)  # a cascade that was there before
        part.replace(out)
    finally:  # after Ctrl-C, too
        shutil.rmtree(part, ignore_errors=True)
    return result


def _made(
    run: Path,
    out: Path,
    wish: Wish,
    pair: tuple[str, str] | None,
    metric: Metric | None,
    min_speedup: float | None,
    workload: Workload | None,
    stage: Callable[[str], None],
) -> CascadeResult:
    found = Cascader(run, metric)
    stage(f"running {len(found.models)} models on {' and '.join(found.files)}")
    sides = found.sides(found.models)
    validation = sides["validation"]
    reading = found.reading(validation)
    rules = {key: found.spec(key, validation, reading) for key in found.models}
    stage(f"timing {len(found.models)} models on single inputs")
    seconds = found.seconds(found.models)
    trust = found.trust(validation)
    steps = {key: found.step(key, seconds[key], validation, rules[key], trust) for key in found.models}
    rule_s = _seconds_of_rule(found, rules)
    if min_speedup is not None:
        wish = replace(wish, max_seconds=steps[DENSE].seconds / min_speedup)
    single = _best_single(steps, wish)
    with tempfile.TemporaryDirectory() as scratch:
        if workload is None:
            pairs = _asked(steps, pair)
            pairs = [(replace(a, seconds=a.seconds + rule_s), b) for a, b in pairs]
            delivered = {
                (a.key, b.key): TwoFiles(found.models[a.key], found.models[b.key], found.models[a.key], found.models[b.key])
                for a, b in pairs
            }
        else:
            keys = list(dict.fromkeys((single, DENSE)))
            stage(f"dividing {' and '.join(keys)} and fitting heads")
            exits = early_exits.make(found, keys, workload, reading, Path(scratch))
            pairs, delivered = _of_exits(found, exits, sides, reading, (steps, trust), rules)
        plan = _best(pairs, steps[DENSE], wish, "models" if workload is None else "halves")
        chosen = delivered[plan.first, plan.second]
        rule = rules[plan.first] | {"threshold": plan.threshold} | ({} if chosen.passes is None else {"passes": chosen.passes})
        out.mkdir(parents=True, exist_ok=True)
        stage("writing the files and comparing them")
        chosen = write(found, chosen, rule, out)
    without = write_one_file(found, chosen, rule, out)
    stage(f"measuring on {cascade_files.EXAMPLES} inputs in {cascade_files.PROCESSES} processes")
    latencies = _measured(found, out, chosen, rule, single, one_file=without is None)
    whole = plan.second if chosen.passes is None else plan.first.split("@")[0]
    ended, systems = _told(found, sides[found.split], rule, (plan.first, whole, single), latencies)
    forms = {name: systems[name].latency.mean.value for name in (TWO_FILES, ONE_FILE) if name in systems}
    deploy = min(forms, key=lambda name: forms[name])
    alone = latencies[DENSE if single == DENSE else SINGLE]
    first, second = next((a, b) for a, b in pairs if (a.key, b.key) == (plan.first, plan.second))
    own = second.alone(steps[DENSE].right)
    result = CascadeResult(
        plan, found.split, ended, systems, deploy, without, single, varying.speedup(latencies[deploy].seconds, alone.seconds),
        [(own + lost, seconds) for _, lost, seconds in curve(first, second, second.right)],
        {key: (step.alone(steps[DENSE].right), step.seconds) for key, step in steps.items()},
        found.metric.name in ("top1", "top5", "agreement"),
    )  # fmt: skip
    result = replace(result, missed=_missed(result, wish, steps[DENSE].seconds))
    finish(found, result, rule, chosen, out)
    return result


def _check_wish(wish: Wish, min_speedup: float | None) -> None:
    if min_speedup is not None and not 0 < min_speedup < math.inf:
        raise UsageError(f"the least speedup must be a number above 0, got {min_speedup:g}")
    if wish.max_drop is not None and not 0 <= wish.max_drop < math.inf:
        raise UsageError(f"the largest drop must be a number, at least 0, got {wish.max_drop:g}")


def _check_folder(run: Path, out: Path) -> None:
    """Raises `UsageError` if what is in the folder is not a cascade of before."""
    mine = out.resolve()
    inside = run.resolve() in (mine, *mine.parents)
    if mine == run.resolve() or (inside and mine.parent != run.resolve()) or mine in run.resolve().parents:
        raise UsageError(f"{out} belongs to the run: name a folder of its own, such as {run / 'cascade'}")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "cascade.json").is_file())):
        raise UsageError(f"{out} holds other files: name a new folder, or one of an earlier cascade")


def _seconds_of_rule(found: Cascader, rules: Mapping[str, Mapping[str, Any]]) -> float:
    """What it takes to decide, beside running the first model: microseconds, which count where models take microseconds."""
    key = DENSE
    first = {"steps": [key, key], "decision": {**rules[key], "threshold": 0.0}}
    measured = found.seconds({key: found.models[key]}, {"alone": {"steps": [key]}, "decided": first})
    return max(measured["decided"] - measured["alone"], 0.0)


def _missed(result: CascadeResult, wish: Wish, dense_s: float) -> tuple[str, ...]:
    """What was asked for and did not come out, as sentences."""
    told, faults = result.systems[result.deploy], []
    if wish.max_drop is not None and told.drop.value > wish.max_drop:
        faults.append(f"its drop on {result.split} is {told.drop.value:.4g}, and {wish.max_drop:g} was asked for")
    if wish.max_seconds is not None and told.latency.speedup.value < dense_s / wish.max_seconds * (1 - 1e-6):
        least = dense_s / wish.max_seconds
        faults.append(f"its mean speedup is {told.latency.speedup.value:.2f}x, and {least:.2f}x was asked for")
    if wish.worst_seconds is not None and told.latency.worst > wish.worst_seconds:
        limit = formatting.seconds(wish.worst_seconds)
        faults.append(f"its slowest input takes {formatting.seconds(told.latency.worst)}, and {limit} was asked for")
    return tuple(faults)


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
    judged: tuple[Mapping[str, CascadeStep], tuple[float, float | None]],
    rules: dict[str, dict[str, Any]],
) -> tuple[list[tuple[CascadeStep, CascadeStep]], dict[tuple[str, str], TwoFiles]]:
    """Pairs of halves, timed and scored; the outputs of the exits are added to ``sides``, their rules to ``rules``."""
    answers = {one.key: one.answer for one in exits}
    for split, side in found.sides(answers).items():
        sides[split] = Side({**sides[split].outputs, **side.outputs}, side.targets)
    pairs, delivered = [], {}
    steps, trust = judged
    for one in exits:
        rules[one.key] = found.spec(one.key, sides["validation"], replace(reading, place=0))
        rule = {**rules[one.key], "passes": one.passes}
        systems = {
            name: {"steps": ["first", "second"], "decision": {**rule, "threshold": threshold}}
            for name, threshold in (("answer", 0.0), ("both", NOBODY))
        }
        both = found.seconds({"first": one.first, "second": one.second}, systems, one.passes)
        first = found.step(one.key, both["answer"], sides["validation"], rules[one.key], trust)
        whole = steps[one.model]
        rest = replace(whole, key=f"{one.key} rest", seconds=max(both["both"] - both["answer"], 0.0))
        pairs.append((first, rest))
        delivered[first.key, rest.key] = TwoFiles(one.first, one.second, one.answer, found.models[one.model], one.passes)
    return pairs, delivered


def _best(pairs: Sequence[tuple[CascadeStep, CascadeStep]], dense: CascadeStep, wish: Wish, what: str) -> CascadePlan:
    found = plans(pairs, dense.right, wish)
    if not found:
        raise UsageError(
            f"no two {what}, both of which are used, keep these limits on examples that chose no threshold: one model for all "
            "inputs serves better (hwprune export)"
        )
    return found[0]


def _best_single(steps: Mapping[str, CascadeStep], wish: Wish) -> str:
    """The model that would be delivered alone within the same limits, judged on the same examples.

    Raises:
        UsageError: no single model keeps them; a cascade is slower than its first model, and so can't either.
    """
    dense = steps[DENSE].right
    limit = min(wish.max_seconds or math.inf, wish.worst_seconds or math.inf)
    fits = [step for step in steps.values() if step.seconds <= limit]
    fits = [step for step in fits if wish.max_drop is None or step.alone(dense) <= wish.max_drop + 1e-9]
    if not fits:
        raise UsageError("no model of the front keeps these limits")
    if wish.max_drop is not None:
        return min(fits, key=lambda step: step.seconds).key
    return min(fits, key=lambda step: (step.alone(dense), step.seconds)).key


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
    return distributions_of(found.make, loaded, systems, found.files[found.split], pair.passes)


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
