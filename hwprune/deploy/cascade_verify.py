"""`hwprune verify` of a cascade: both branches, the accuracy, and the mean latency on single inputs, again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hwprune.common import formatting
from hwprune.common.files import read_json, sha256
from hwprune.deploy.cascade_files import DENSE, ONE_FILE, TWO_FILES, TwoFiles, chained, compare, distributions_of, joined
from hwprune.deploy.checks import Check, Verified
from hwprune.deploy.target_of_run import profile
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import fingerprint, varying
from hwprune.latency.availability import missing
from hwprune.latency.bench import Bench
from hwprune.latency.cascade_runner import ExitRule
from hwprune.latency.samples import read_batches
from hwprune.records.target import Target
from hwprune.workload import closeness, metrics, sample_files, scoring
from hwprune.workload.metrics import Metric

SPEEDUP_TOLERANCE = 0.05
"""A mean over inputs is measured again this close, on the same machine and versions: single calls are timed, not blocks."""


def verify_cascade(folder: Path, metric: Metric | None, step: Callable[[], None]) -> Verified:
    """Check the files of `hwprune cascade`.

    Raises:
        UsageError: cascade.json has faults, or its target can't be measured here.
    """
    facts = read_json(folder / "cascade.json")
    lacking = [
        name
        for name in ("steps", "decision", "files", "systems", "target", "deploy", "workload", "fingerprint")
        if name not in facts
    ]
    if lacking:
        raise UsageError(f"{folder / 'cascade.json'} lacks {', '.join(lacking)}: it is not one that hwprune cascade wrote")
    target = profile(facts)
    if reasons := missing(target):
        raise UsageError(f"target {target.name} can't be measured on this machine: {'; '.join(reasons)}")
    verified = Verified(folder.name, [_integrity(folder, facts["files"])])
    if not verified.passed:
        return verified
    shapes = [x.shape for x in varying.drawn(read_batches(str(folder / "samples.npz")), 1)[0]]
    first, second = (folder / name for name in facts["steps"])
    halves = "passes" in facts["decision"]
    answers, whole = (folder / "answer.onnx", folder / "whole.onnx") if halves else (first, second)
    files = {"first": first, "second": second, "answers": answers, "whole": whole, DENSE: folder / "dense.onnx"}
    if facts.get("without_one_file", "") is None:
        files[ONE_FILE] = folder / "model.onnx"

    def make() -> Bench:
        return Bench(target, shapes=shapes)

    try:
        if halves:
            pair = TwoFiles(first, second, answers, whole, facts["decision"]["passes"])
            apart = chained(make, pair, folder / "samples.npz")
            text = f"one after the other they differ from the whole model by {apart:.2g} at most"
            verified.checks.append(Check("halves", apart <= closeness.TOLERANCES[target.precision], text))
        if ONE_FILE in files:
            verified.checks.append(_branches(make, files, facts, folder, target))
        step()
        verified.checks.append(_metric(make, files, facts, folder, metric or metrics.of_record(facts["workload"]), verified))
        step()
        _speed(make, files, facts, folder, target, verified)
    except CandidateFailure as failure:
        verified.checks.append(Check("run", False, failure.reason))
    return verified


def _integrity(folder: Path, files: Mapping[str, str]) -> Check:
    faults = [name for name, digest in files.items() if Path(name).name != name or not (folder / name).is_file()]
    faults += [name for name in files if name not in faults and sha256(folder / name) != files[name]]
    return Check(
        "integrity", not faults, f"{', '.join(faults)} missing or changed" if faults else f"{len(files)} files as listed"
    )


def _branches(
    make: Callable[[], Bench], files: Mapping[str, Path], facts: Mapping[str, Any], folder: Path, target: Target
) -> Check:
    wanted = {ONE_FILE: files[ONE_FILE], "first": files["answers"], "second": files["whole"]}
    worst, (ends, goes_on) = compare(make, wanted, facts["decision"], folder)
    text = f"{ends} examples that end and {goes_on} that go on: the one file differs from the two by {worst:.2g} at most"
    close = worst <= closeness.TOLERANCES[target.precision]
    return Check("branches", close if ends and goes_on else None if close else False, text)


def _metric(
    make: Callable[[], Bench],
    files: Mapping[str, Path],
    facts: Mapping[str, Any],
    folder: Path,
    metric: Metric | None,
    verified: Verified,
) -> Check:
    targets = sample_files.read_targets(folder / "samples.npz")
    if metric is None or (not metric.agreement and any(target is None for target in targets)):
        return Check("metric", None, "the metric is a function of the workload's: name it with --workload")
    outputs: dict[str, scoring.Outputs] = {}
    with tempfile.TemporaryDirectory() as scratch, make() as bench:
        out = Path(scratch) / "outputs.npz"
        for name in ("answers", "whole", DENSE):
            bench.load("model", files[name])
            bench.run("model", folder / "samples.npz", out)
            outputs[name] = scoring.read_outputs(out)
    both, ended, count = joined(ExitRule(facts["decision"]), outputs["answers"], outputs["whole"])
    value, drop = scoring.score_and_drop(metric, both, outputs[DENSE], targets)
    verified.drop = drop.value
    recorded = facts["systems"][TWO_FILES]["metric"]["value"]
    close = abs(value.value - recorded) <= max(1.5 / count, 1e-3 * abs(recorded))
    text = f"{metric.name} {value.value:.4g}, recorded {recorded:.4g}; {formatting.percent(ended / count)} of {count} end early"
    return Check("metric", close, text)


def _speed(
    make: Callable[[], Bench],
    files: Mapping[str, Path],
    facts: Mapping[str, Any],
    folder: Path,
    target: Target,
    verified: Verified,
) -> None:
    deploy = facts["deploy"]
    systems: dict[str, dict[str, Any]] = {DENSE: {"steps": [DENSE]}}
    if deploy == ONE_FILE:
        loaded, systems[deploy] = {DENSE: files[DENSE], ONE_FILE: files[ONE_FILE]}, {"steps": [ONE_FILE]}
    else:
        loaded = {name: files[name] for name in (DENSE, "first", "second")}
        systems[deploy] = {"steps": ["first", "second"], "decision": facts["decision"]}
    speedup = distributions_of(make, loaded, systems, folder / "samples.npz", facts["decision"].get("passes"))[deploy].speedup
    recorded = float(facts["systems"][deploy]["latency"]["speedup"]["value"])
    verified.speedup, verified.recorded_speedup = speedup, recorded
    ratio = speedup.value / recorded - 1
    text = (
        f"{deploy}: {formatting.speedup(speedup.value, speedup.ci_low, speedup.ci_high)} in the mean, recorded {recorded:.2f}x "
        f"({100 * ratio:+.1f} %)"
    )
    if facts["fingerprint"]["identity"] != fingerprint.identity(target):
        verified.checks.append(Check("latency", None, f"{text}; another machine or version, so not judged"))
        return
    verified.checks.append(Check("latency", ratio >= -SPEEDUP_TOLERANCE or speedup.ci_high >= recorded, text))
