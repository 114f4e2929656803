"""`hwprune export`: a point of a run as files to deploy, with a manifest.

An ONNX export is self-contained: it brings the dense model and evaluation samples with expected outputs, so that
`hwprune verify` can repeat parity, metric and paired latency on another machine.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from hwprune import patterns
from hwprune.common.files import dump_json, sha256, write_atomic
from hwprune.deploy import layout, quantise
from hwprune.deploy.formats import FORMATS
from hwprune.deploy.point import ExportedPoint, Options, copy
from hwprune.deploy.target_of_run import profile
from hwprune.errors import CandidateFailure, RunError, UnknownNameError, UsageError
from hwprune.latency.availability import missing
from hwprune.latency.bench import Bench
from hwprune.latency.samples import batch_order, example_shapes
from hwprune.records.record import Record, read_record
from hwprune.records.target import Target
from hwprune.records.target import load as load_target
from hwprune.workload import metrics, sample_files, scoring
from hwprune.workload.workload import Workload

SCHEMA = 1
SAMPLE_BYTES = 32_000_000
"""Bytes of the evaluation split that travel with an export."""
TOLERANCE = 1e-4
"""Largest difference of the outputs of a file in 32 bits from the recorded ones, relative to the largest."""
HALF_TOLERANCE = 2e-2
OPENVINO_TOLERANCE = 1e-3
"""Another runtime's kernels; still far below what a wrong graph does."""


def check_format(name: str, options: Options | None = None) -> None:
    """Raises `UnknownNameError`, or `UsageError` for options that the format has no use for."""
    if name not in FORMATS:
        raise UnknownNameError("export format", name, list(FORMATS))
    given = options or Options()
    useless = [
        key for key, value in given.to_json().items() if value != getattr(Options(), key) and key not in FORMATS[name].options
    ]
    if useless:
        raise UsageError(f"format {name} has no use for {', '.join(useless)}")


def export_run(
    run: Path, number: int, form: str, out: Path, workload: Workload | None = None, options: Options | None = None
) -> Path:
    """Write one point of a run's front into ``out``; returns the folder.

    What runs is checked against the outputs of the file that the search measured before it is handed over.

    Args:
        workload: for ``pt2`` and ``huggingface``; default: loaded from the run's source.
        options: how an ONNX file is written.

    Raises:
        UsageError: the run has no such point, the format needs a workload, or ``out`` holds other files.
        RunError: what was written does not compute what was measured, or can't be made.
    """
    options = options or Options()
    check_format(form, options)
    record = read_record(run)
    source = run / "candidates" / str(number)
    if number not in {point.trial for point in record.front} or not source.is_dir():
        points = ", ".join(str(point.trial) for point in record.front) or "none"
        raise UsageError(f"trial {number} is not a point of the front of {run}; points: {points}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder: choose another --out")
    new_folder = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _export(run, ExportedPoint(record, number, source, out, options, workload), form)
    except BaseException as error:
        if new_folder:  # a half-filled folder would pass for an export
            shutil.rmtree(out, ignore_errors=True)
        if isinstance(error, CandidateFailure):
            raise RunError(f"trial {number} can't be exported as {form}: {error.reason}") from error
        raise


def _export(run: Path, point: ExportedPoint, form: str) -> Path:
    record, out, options = point.record, point.out, point.options
    files = FORMATS[form].write(point)
    extra: dict[str, Any] = {}
    if (runs := FORMATS[form].runs) is not None:
        files += _dense(run / "baseline" / "model.onnx", out)
        files += copy(run / "baseline", out, ["example.npz"])
        choices = record.trial(point.number)["recipe"]["choices"]
        extra = {"model": runs[0], "runs_on": runs[1], "tolerance": _tolerance(point, form)}
        if runs[0].endswith(".onnx"):
            extra["layout"] = layout.describe(out / runs[0], [choice["pattern"] for choice in choices])
        extra |= _samples(run, point, runs, extra["tolerance"])
        files += ["samples.npz", "expected.npz"]
    manifest = {
        "schema": SCHEMA,
        "format": form,
        "options": options.to_json(),
        "workload": record.data["workload"],
        "target": record.data["target"],
        "latency_source": record.latency_source,
        "fingerprint": record.data["fingerprint"],
        "versions": record.data["versions"],
        "point": next(stored for stored in record.data["front"] if stored["trial"] == point.number),
        "recipe": record.trial(point.number)["recipe"],
        "dense_latency": record.data["baseline"]["latency"],
        "dense_metric": record.dense_metric,
        "calibration_sha256": record.data["workload"].get("calibration_sha256", ""),
        "training": training_of(record, point.number),
        "quantisation": dict(point.quantised) if point.quantised else None,
        **extra,
        "files": {name: sha256(out / name) for name in sorted(set(files))},
    }
    write_atomic(out / "manifest.json", dump_json(manifest))
    return out


def _dense(source: Path, out: Path) -> list[str]:
    """dense.onnx; its weights under a name of their own, where they lie beside the model as the candidate's may."""
    if not any(path.name != source.name for path in source.parent.glob("model.onnx*")):
        return copy(source.parent, out, [source.name], {source.name: "dense.onnx"})
    onnx.save(onnx.load(str(source)), str(out / "dense.onnx"), save_as_external_data=True, location="dense.onnx.data")
    return ["dense.onnx", "dense.onnx.data"]


def _tolerance(point: ExportedPoint, form: str) -> float:
    """The difference allowed to the outputs: it depends on what the weights are held in, and on who runs them."""
    tolerance = OPENVINO_TOLERANCE if form == "openvino" else TOLERANCE
    if point.options.precision != "fp32":
        tolerance = HALF_TOLERANCE
    if point.quantised:
        tolerance = max(tolerance, quantise.PRECISIONS[point.quantised["precision"]].tolerance)
    return tolerance


def training_of(record: Record, number: int) -> dict[str, Any] | None:
    """The training of a point: plan, from which trial, seconds, examples; None if it was not trained."""
    recovery = record.trial(number).get("recovery")
    return None if not recovery else {key: recovery[key] for key in ("of", "plan", "seconds", "examples")}


def _samples(run: Path, point: ExportedPoint, runs: tuple[str, str], tolerance: float) -> dict[str, Any]:
    """The first batches of the final split with the outputs of the file that was measured; what the manifest says of them.

    Raises:
        CandidateFailure: what is handed over computes something else.
    """
    record, out = point.record, point.out
    split = record.front[0].split
    batches_taken: dict[str, np.ndarray[Any, Any]] = {}
    total = 0
    with np.load(run / "baseline" / f"{split}.npz", allow_pickle=False) as stored:
        batches = sorted({name.split(".")[0] for name in stored.files}, key=batch_order)
        for batch in batches:
            members = {name: stored[name] for name in stored.files if name.startswith(f"{batch}.")}
            total += sum(array.nbytes for array in members.values())
            if batches_taken and total > SAMPLE_BYTES:
                break
            batches_taken.update(members)
    if point.options.batch is not None:
        batches_taken = whole_batches(batches_taken, point.options.batch)
        example = whole_batches(_read(out / "example.npz"), point.options.batch, repeat=True)
        np.savez(out / "example.npz", allow_pickle=False, **example)
    np.savez(out / "samples.npz", allow_pickle=False, **batches_taken)
    target = _here(record)
    with Bench(target, shapes=example_shapes(out / "example.npz")) as bench:
        bench.load("model", point.onnx_file)
        bench.run("model", out / "samples.npz", out / "expected.npz")
        bench.load("dense", out / "dense.onnx")
        bench.run("dense", out / "samples.npz", out / ".dense.npz")
    outputs, dense = scoring.read_outputs(out / "expected.npz"), scoring.read_outputs(out / ".dense.npz")
    (out / ".dense.npz").unlink()
    choices = record.trial(point.number)["recipe"]["choices"]
    chooses = any(choice["pattern"] in patterns.TOKENS for choice in choices)
    _check(out, runs, target, outputs, tolerance, chooses=chooses)
    facts: dict[str, Any] = {"samples": {"split": split, "examples": sum(len(batch[0]) for batch in outputs)}}
    metric = metrics.of_record(record.data["workload"])
    targets = sample_files.read_targets(out / "samples.npz")
    if metric is not None and (metric.agreement or all(isinstance(t, torch.Tensor) for t in targets)):
        facts["samples"]["metric"] = scoring.score(metric, outputs, targets, dense, sure=False).to_json()
    return facts


def _here(record: Record) -> Target:
    """The run's target, or this CPU where the device is elsewhere: expected outputs are then in 32 bits."""
    target = profile(record.data) if record.measured else load_target("cpu")
    return load_target("cpu") if missing(target) else target


def _check(
    out: Path, runs: tuple[str, str], target: Target, expected: scoring.Outputs, tolerance: float, *, chooses: bool
) -> None:
    """Does what is handed over compute what was measured?"""
    name, profile_name = runs
    with Bench(load_target(profile_name) if profile_name else target, shapes=example_shapes(out / "example.npz")) as bench:
        bench.load("model", out / name)
        bench.run("model", out / "samples.npz", out / ".made.npz")
    outputs = scoring.read_outputs(out / ".made.npz")
    (out / ".made.npz").unlink()
    worst = scoring.largest_difference(outputs, expected, chooses=chooses)
    if not worst <= tolerance:
        raise CandidateFailure("export", f"{name} differs from the measured model by {worst:.2g} of the largest output")


def _read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def whole_batches(arrays: dict[str, np.ndarray[Any, Any]], size: int, *, repeat: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """Stored batches (see `hwprune.workload.sample_files.write_samples`) as ones of exactly ``size`` examples.

    Targets that are lists and mappings do not come apart by rows, and are left out.

    Args:
        repeat: the first examples of a batch that is too small come again; else what is left over is left out.
    """
    whole: dict[str, np.ndarray[Any, Any]] = {}
    batches = sorted({name.split(".")[0] for name in arrays}, key=batch_order)
    count = 0
    for batch in batches:
        members = {name.split(".", 1)[1]: array for name, array in arrays.items() if name.startswith(f"{batch}.")}
        if "form" in members:
            members = {name: array for name, array in members.items() if name.startswith("input")}
        length = max((len(array) for array in members.values() if array.ndim), default=0)
        if repeat and length:
            members = {n: np.concatenate([a] * -(-size // length))[:size] if a.ndim else a for n, a in members.items()}
            length = size
        for start in range(0, length - size + 1, size):
            for name, array in members.items():
                whole[f"{count:06d}.{name}"] = array[start : start + size] if array.ndim else array
            count += 1
    if not whole:
        raise UsageError(f"no batch of the evaluation data has {size} examples: export with a smaller --batch")
    return whole
