"""`hwprune export`: a point of a run as files to deploy, with a manifest.

An ONNX export is self-contained: it brings the dense model and evaluation samples with expected outputs, so that
`hwprune verify` can repeat parity, metric and paired latency on another machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune import evaluate, export, metrics, patterns, record, sources
from hwprune.deploy.profile import profile
from hwprune.errors import UnknownNameError, UsageError
from hwprune.files import dump_json, sha256, write_atomic
from hwprune.latency.bench import Bench
from hwprune.latency.worker import example_shapes, missing
from hwprune.pruning import Pruner
from hwprune.target import load as load_target
from hwprune.workload import Workload

SCHEMA = 1
SAMPLE_BYTES = 32_000_000
"""How much of the evaluation split travels with an export."""

FORMATS = {
    "onnx": "model.onnx with dense.onnx and samples for `hwprune verify`",
    "recipe": "recipe.json and the masks, to apply again",
    "pt2": "model.pt2, a torch.export program (needs the workload)",
}
PLANNED = {"tensorrt": "TensorRT engines are not supported by this version of hwprune; export onnx and build it with trtexec"}


def check_format(name: str) -> None:
    """Raises `UnknownNameError`, or `UsageError` for a format that is not there yet."""
    if name in PLANNED:
        raise UsageError(PLANNED[name])
    if name not in FORMATS:
        raise UnknownNameError("export format", name, [*FORMATS, *PLANNED])


def export_run(run: Path, number: int, form: str, out: Path, workload: Workload | None = None) -> Path:
    """Write one point of a run's front into ``out``; returns the folder.

    Args:
        workload: for ``pt2``; default: loaded from the run's source.

    Raises:
        UsageError: the run has no such point, the format needs a workload, or ``out`` holds other files.
    """
    check_format(form)
    data = record.read_record(run)
    point = next((p for p in data["front"] if p["trial"] == number), None)
    source = run / "candidates" / str(number)
    if point is None or not source.is_dir():
        known = ", ".join(str(p["trial"]) for p in data["front"]) or "none"
        raise UsageError(f"trial {number} is not a point of the front of {run}; points: {known}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder: choose another --out")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _export(run, data, point, form, out, workload)
    except BaseException:
        if made:  # a half-filled folder would pass for an export
            shutil.rmtree(out, ignore_errors=True)
        raise


def _export(run: Path, data: record.Record, point: dict[str, Any], form: str, out: Path, workload: Workload | None) -> Path:
    source = run / "candidates" / str(point["trial"])
    copied = _copy(source, out, ["recipe.json", "keep.safetensors"])
    extra: dict[str, Any] = {}
    if form == "pt2":
        copied.append(_pt2(data, source, out, workload))
    if form == "onnx" and record.model_file(data) != "model.onnx":
        raise UsageError(f"the run measured {record.model_file(data)} files: export them with --format pt2")
    if form == "onnx":
        copied += _copy(source, out, ["model.safetensors", *sorted(p.name for p in source.glob("model.onnx*"))])
        for path in sorted((run / "baseline").glob("model.onnx*")):
            name = path.name if path.name != "model.onnx" else "dense.onnx"
            copied += _copy(run / "baseline", out, [path.name], {path.name: name})
        copied += _copy(run / "baseline", out, ["example.npz"])
        extra = _samples(run, data, out)
        copied += ["samples.npz", "expected.npz"]
    manifest = {
        "schema": SCHEMA,
        "format": form,
        "workload": data["workload"],
        "target": data["target"],
        "latency_source": record.latency_source(data),
        "fingerprint": data["fingerprint"],
        "versions": data["versions"],
        "point": point,
        "dense_latency": data["baseline"]["latency"],
        "dense_metric": record.dense_metric(data),
        "training": training_of(data, point["trial"]),
        **extra,
        "files": {name: sha256(out / name) for name in sorted(copied)},
    }
    write_atomic(out / "manifest.json", dump_json(manifest))
    return out


def training_of(data: record.Record, number: int) -> dict[str, Any] | None:
    """How a point was trained: plan, from which trial, seconds, examples; None if it was not."""
    found = record.trial(data, number).get("recovery")
    return None if not found else {key: found[key] for key in ("of", "plan", "seconds", "examples")}


def _copy(source: Path, out: Path, names: list[str], rename: Mapping[str, str] | None = None) -> list[str]:
    done = []
    for name in names:
        if (source / name).is_file():
            target = (rename or {}).get(name, name)
            shutil.copyfile(source / name, out / target)
            done.append(target)
    return done


def _pt2(data: record.Record, source: Path, out: Path, workload: Workload | None) -> str:
    """The candidate's stored weights in the cut structure, as an exported program."""
    from safetensors.torch import load_file

    if workload is None:
        if not data["workload"]["source"]:
            raise UsageError("the run was made from a live Python object: name its workload with --workload to export pt2")
        workload = sources.load(data["workload"]["source"])
    pruner = Pruner(workload)
    stored = export.read_recipe(source / "recipe.json")
    fingerprint, keeps = stored.fingerprint, stored.keeps
    if fingerprint != pruner.fingerprint:
        raise UsageError("the workload's model is not the one that the run was made with (fingerprint differs)")
    drop = [choice.unit for choice in stored.recipe.choices if choice.pattern == patterns.BRANCH]
    module = pruner.graph.cut(keeps, drop)
    module.load_state_dict(load_file(source / "model.safetensors"))
    export.to_pt2(module, workload.example_inputs, out / "model.pt2")
    return "model.pt2"


def _samples(run: Path, data: record.Record, out: Path) -> dict[str, Any]:
    """The first batches of the final split with the candidate's outputs on them; returns what the manifest says of it."""
    split = data["front"][0]["split"]
    chosen: dict[str, np.ndarray[Any, Any]] = {}
    total = 0
    with np.load(run / "baseline" / f"{split}.npz", allow_pickle=False) as stored:
        batches = sorted({name.split(".")[0] for name in stored.files})
        for batch in batches:
            members = {name: stored[name] for name in stored.files if name.startswith(f"{batch}.")}
            total += sum(array.nbytes for array in members.values())
            if chosen and total > SAMPLE_BYTES:
                break
            chosen.update(members)
    np.savez(out / "samples.npz", allow_pickle=False, **chosen)
    target = profile(data) if record.latency_source(data) == record.MEASURED else load_target("cpu")
    if missing(target):  # the device is elsewhere: expected outputs are this CPU's, in 32 bits
        target = load_target("cpu")
    with Bench(target, shapes=example_shapes(out / "example.npz")) as bench:
        bench.load("model", out / "model.onnx")
        bench.run("model", out / "samples.npz", out / "expected.npz")
        bench.load("dense", out / "dense.onnx")
        bench.run("dense", out / "samples.npz", out / ".dense.npz")
    outputs, dense = evaluate.read_outputs(out / "expected.npz"), evaluate.read_outputs(out / ".dense.npz")
    (out / ".dense.npz").unlink()
    found: dict[str, Any] = {"samples": {"split": split, "examples": sum(len(batch[0]) for batch in outputs)}}
    metric = metrics.METRICS.get(data["workload"]["metric"])
    targets = evaluate.read_targets(out / "samples.npz")
    if metric is not None and (metric.agreement or all(isinstance(t, torch.Tensor) for t in targets)):
        found["samples"]["metric"] = evaluate.score(metric, outputs, targets, dense).to_json()
    return found
