"""`hwprune verify`: does what was exported still compute, score and run as it was recorded, on this machine?

Takes an export folder (manifest.json), one candidate of a run, a whole run directory, or a cascade (cascade.json).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune import patterns
from hwprune.common import formatting
from hwprune.common.files import sha256
from hwprune.deploy import layout
from hwprune.deploy.cascade_verify import verify_cascade
from hwprune.deploy.checks import Check, Gate, Verified
from hwprune.deploy.formats import FORMATS
from hwprune.deploy.manifest import read_manifest
from hwprune.deploy.target_of_run import profile
from hwprune.errors import CandidateFailure, UsageError, described
from hwprune.latency import fingerprint, fresh
from hwprune.latency.availability import missing
from hwprune.latency.bench import Bench
from hwprune.latency.samples import example_shapes
from hwprune.latency.worker_process import BenchLimits
from hwprune.records import target as targets
from hwprune.records.measurement import Measurement
from hwprune.records.record import MEASURED, Record, read_record
from hwprune.workload import metrics, sample_files, scoring
from hwprune.workload.metrics import Metric

PARITY_TOLERANCE = 1e-4
"""Largest difference of the outputs from the recorded ones, relative to the largest, where a manifest says none."""
SPEEDUP_TOLERANCE = 0.03
"""A speedup measured again may be this much below the recorded one, on the same machine and versions."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """One model with everything to compare it with."""

    name: str
    model: Path
    point: Mapping[str, Any]
    expected: Path | None
    recorded_metric: Mapping[str, Any] | None
    tolerance: float = PARITY_TOLERANCE
    chooses: bool = False
    """Does it choose its tokens?"""


def verify(
    folder: Path, metric: Metric | None = None, step: Callable[[], None] = lambda: None, gate: Gate | None = None
) -> list[Verified]:
    """Check every model in ``folder``.

    Args:
        metric: for runs whose metric is a function of the user's; default: by the recorded name.
        gate: what every model must reach besides.

    Raises:
        UsageError: the folder is neither an export nor a run nor a candidate of one, or a file has faults.
    """
    found = _verify(folder, metric, step)
    for verified in found:
        (gate or Gate()).judge(verified)
    return found


def _verify(folder: Path, metric: Metric | None, step: Callable[[], None]) -> list[Verified]:
    if (folder / "manifest.json").is_file():
        return _verify_export(folder, metric, step)
    if (folder / "cascade.json").is_file():
        return [verify_cascade(folder, metric, step)]
    if (folder / "record.json").is_file():
        return _verify_run(folder, None, metric, step)
    run = folder.resolve().parent.parent
    if folder.resolve().parent.name == "candidates" and (run / "record.json").is_file() and folder.resolve().name.isdigit():
        return _verify_run(run, int(folder.resolve().name), metric, step)
    raise UsageError(
        f"{folder} holds neither manifest.json (an export) nor record.json (a run) nor cascade.json, and is no candidate of a run"
    )


def _verify_export(folder: Path, metric: Metric | None, step: Callable[[], None]) -> list[Verified]:
    manifest = read_manifest(folder)
    verified = Verified(folder.name, [_integrity(folder, manifest["files"])])
    if not verified.passed:
        return [verified]
    form = FORMATS.get(manifest["format"])
    if form is None or form.runs is None:
        verified.checks.append(Check("run", None, f"format {manifest['format']} holds nothing that a runtime runs by itself"))
        return [verified]
    name, runs_on = form.runs
    if lacking := [n for n in (name, "dense.onnx", "samples.npz", "expected.npz", "example.npz") if n not in manifest["files"]]:
        verified.checks[0] = Check("integrity", False, f"the manifest does not list {', '.join(lacking)}")
        return [verified]
    if "layout" in manifest:
        verified.checks.append(_layout(folder / name, manifest["layout"]))
    sample = manifest.get("samples", {})
    subject = _Subject(
        folder.name, folder / name, manifest["point"], folder / "expected.npz", sample.get("metric"),
        float(manifest.get("tolerance", PARITY_TOLERANCE)),
        any(choice["pattern"] in patterns.TOKENS for choice in manifest["recipe"]["choices"]),
    )  # fmt: skip
    metric = metric or metrics.of_record(manifest["workload"])
    _run_checks(
        [(verified, subject)], manifest, folder / "dense.onnx", folder / "samples.npz", folder / "example.npz", metric, step,
        runs_on,
    )  # fmt: skip
    return [verified]


def split_file(run: Path, record: Record) -> Path:
    """The samples that the front was scored on. Raises `UsageError` if they are gone."""
    path = run / "baseline" / f"{record.front[0].split}.npz"
    if not path.is_file():
        raise UsageError(f"{path} is missing")
    return path


def _layout(model: Path, recorded: Mapping[str, Any]) -> Check:
    """Check that what was removed is still removed, and in the pattern that the kernels want."""
    try:
        faults = layout.faults(model, recorded)
    except Exception as error:  # onnx raises what protobuf raises
        return Check("layout", False, f"{model.name} can't be read: {described(error)}")
    text = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    return Check("layout", not faults, text or layout.summary(recorded))


def _integrity(folder: Path, files: Mapping[str, str]) -> Check:
    faults = []
    for name, digest in files.items():
        path = folder / name
        if path.resolve().parent != folder.resolve():
            faults.append(f"{name} points out of the folder")
        elif not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256(path) != digest:
            faults.append(f"{name} has changed")
    return Check("integrity", not faults, "; ".join(faults) or f"{len(files)} files as in the manifest")


def _verify_run(run: Path, number: int | None, metric: Metric | None, step: Callable[[], None]) -> list[Verified]:
    record = read_record(run)
    points = [p for p in record.data["front"] if number is None or p["trial"] == number]
    if not points:
        raise UsageError(f"{run} has no confirmed front" if number is None else f"trial {number} is not on the front of {run}")
    metric = metric or metrics.of_record(record.data["workload"])
    pairs = []
    for point in points:
        name = f"trial {point['trial']}"
        model = run / "candidates" / str(point["trial"]) / record.model_file
        pairs.append((Verified(name), _Subject(name, model, point, None, point["metric"])))
    baseline = run / "baseline"
    _run_checks(pairs, record.data, baseline / record.model_file, split_file(run, record), baseline / "example.npz", metric, step)
    return [verified for verified, _ in pairs]


def _run_checks(
    pairs: list[tuple[Verified, _Subject]],
    data: Mapping[str, Any],
    dense: Path,
    samples: Path,
    example: Path,
    metric: Metric | None,
    step: Callable[[], None],
    runs_on: str = "",
) -> None:
    measured_run = data.get("latency_source", MEASURED) == MEASURED
    target = targets.load(runs_on) if runs_on else profile(data) if measured_run else targets.load("cpu")
    if reasons := missing(target):
        raise UsageError(f"target {target.name} can't be measured on this machine: {'; '.join(reasons)}")
    for needed in (dense, samples, example):
        if not needed.is_file():
            raise UsageError(f"{needed} is missing")
    with tempfile.TemporaryDirectory() as folder, Bench(target, shapes=example_shapes(example)) as bench:
        scratch = Path(folder) / "outputs.npz"  # the export may lie where nothing can be written
        bench.load("model", dense)
        bench.run("model", samples, scratch)
        dense_outputs = scoring.read_outputs(scratch)
        for verified, subject in pairs:
            _outputs(bench, verified, subject, samples, scratch, metric, dense_outputs)
    models = {subject.name: subject.model for verified, subject in pairs if verified.passed}
    if not measured_run:
        for verified, _ in pairs:
            verified.checks.append(
                Check("latency", None, "the run predicted its latencies; there is no measured one to compare with")
            )
        return
    shapes = example_shapes(example)
    measured = fresh.remeasure(models, dense, example, lambda: Bench(target, BenchLimits(), shapes=shapes), step=step)
    recorded = {key: value for key, value in data["fingerprint"]["identity"].items() if key != "fleet"}
    same = recorded == fingerprint.identity(target)
    for verified, subject in pairs:
        if subject.name in measured and "dense" in measured:
            _speed(verified, subject, measured[subject.name][1], same_machine=same)
        elif subject.name in models:
            verified.checks.append(Check("latency", False, "the model failed while it was measured"))


def _outputs(
    bench: Bench,
    verified: Verified,
    subject: _Subject,
    samples: Path,
    scratch: Path,
    metric: Metric | None,
    dense: scoring.Outputs,
) -> None:
    try:
        bench.load("model", subject.model)
        bench.run("model", samples, scratch)
    except CandidateFailure as failure:
        verified.checks.append(Check("run", False, failure.reason))
        return
    outputs = scoring.read_outputs(scratch)
    if subject.expected is not None:
        verified.checks.append(_parity(outputs, scoring.read_outputs(subject.expected), subject.tolerance, subject.chooses))
    targets_ = sample_files.read_targets(samples)
    if metric is None:
        verified.checks.append(Check("metric", None, "the metric is a function of the workload's: name it with --workload"))
        return
    if not metric.agreement and any(t is None for t in targets_):
        verified.checks.append(
            Check("metric", None, "the targets were not stored: they are no tensors, lists or mappings of such")
        )
        return
    try:
        value = scoring.score(metric, outputs, targets_, dense, sure=False)
    except CandidateFailure as failure:
        verified.checks.append(Check("metric", False, failure.reason))
        return
    verified.drop = metric.drop(scoring.score(metric, dense, targets_, dense, sure=False).value, value.value)
    recorded = subject.recorded_metric
    if recorded is None:
        verified.checks.append(Check("metric", None, f"{metric.name} {value.value:.4g} (none recorded)"))
        return
    # One example may change sides where its two largest outputs are equal to rounding.
    close = abs(value.value - recorded["value"]) <= max(1.5 / value.samples, 1e-3 * abs(recorded["value"]))
    verified.checks.append(
        Check("metric", close, f"{metric.name} {value.value:.4g}, recorded {recorded['value']:.4g} ({value.samples} examples)")
    )


def _parity(outputs: scoring.Outputs, expected: scoring.Outputs, tolerance: float, chooses: bool) -> Check:  # noqa: FBT001
    shapes = [[tuple(t.shape) for t in batch] for batch in outputs], [[tuple(t.shape) for t in batch] for batch in expected]
    if shapes[0] != shapes[1]:
        got, wanted = (next((f"{batch}" for batch in batches), "nothing") for batches in shapes)
        return Check("parity", False, f"outputs have other shapes than recorded: {got} instead of {wanted}")
    worst = scoring.largest_difference(outputs, expected, chooses=chooses)
    return Check("parity", worst <= tolerance, f"largest difference {worst:.2g} of the largest output (allowed {tolerance:g})")


def _speed(verified: Verified, subject: _Subject, speedup: Measurement, *, same_machine: bool) -> None:
    stored = subject.point["speedup"]
    conditions = stored.get("conditions", {})
    if each := conditions.get("targets"):  # of several targets the first one is measured again
        stored = each[conditions["first"]]["speedup"]
    recorded = float(stored["value"])
    verified.speedup, verified.recorded_speedup = speedup, recorded
    ratio = speedup.value / recorded - 1
    text = (
        f"{formatting.speedup(speedup.value, speedup.ci_low, speedup.ci_high)}, recorded {recorded:.2f}x ({100 * ratio:+.1f} %)"
    )
    if not same_machine:
        verified.checks.append(Check("latency", None, f"{text}; another machine or version, so not judged"))
        return
    verified.checks.append(Check("latency", ratio >= -SPEEDUP_TOLERANCE or speedup.ci_high >= recorded, text))
