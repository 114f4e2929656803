"""record.json: everything that was measured, derived from the study."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from hwprune import runtimes
from hwprune.records.target import Target
from hwprune.records.trial import Trial
from hwprune.searching.evaluating.dense import Baseline
from hwprune.searching.final.point import Confirmed
from hwprune.searching.job import Job
from hwprune.searching.space.space import SearchSpace
from hwprune.structure.model_graph import ModelGraph
from hwprune.workload.workload import Workload

SCHEMA = 1
PACKAGES = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "optuna",
    "numpy",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """hwprune, Python, the system and the packages that decide numbers, as far as they are installed."""
    from hwprune.version import VERSION

    found = {"hwprune": VERSION, "python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def build_record(
    *,
    job: Job,
    workload: Workload,
    calibration_sha256: str = "",
    saves: Mapping[str, tuple[list[int], list[float]]] | None = None,
    target: Target,
    identity: dict[str, Any],
    conditions: dict[str, Any],
    space: SearchSpace,
    graph: ModelGraph,
    baseline: Baseline,
    trials: Sequence[Trial],
    points: Sequence[Confirmed],
    untrained: Sequence[Confirmed] = (),
    trained: Sequence[Confirmed] = (),
    quantised: Sequence[Confirmed] = (),
    created: str,
    notes: Sequence[str],
    self_checks: Sequence[dict[str, Any]],
    finished: bool,
) -> dict[str, Any]:
    """The record as JSON values; its schema is in docs/files.md."""
    metric = workload.scoring
    return {
        "schema": SCHEMA,
        "created": created,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "job": job.to_json(),
        "latency_source": job.latency_source,
        "workload": {
            "name": workload.name,
            "source": workload.source,
            "metric": metric.name,
            "higher_is_better": metric.higher_is_better,
            "calibration_sha256": calibration_sha256,
            "example_shapes": [list(x.shape) for x in workload.example_inputs],
        },
        "target": {
            "name": target.name,
            "description": target.description,
            "runtime": target.runtime,
            "file": runtimes.get(target.runtime).file if job.latency_source == "measured" else "model.onnx",
            "precision": target.precision,
            "threads": target.threads,
            "profile": target.to_json(),
        },
        "fingerprint": {"identity": identity, "conditions": conditions},
        "space": {
            "name": space.file.name,
            "compensation": space.compensation,
            "size_log10": round(space.size_log10, 2),
            "units": [
                {
                    "name": k.unit,
                    "role": k.role,
                    "size": k.size,
                    "levels": {p: list(v) for p, v in k.levels.items()},
                    "methods": list(k.methods),
                    "saves": [list(pair) for pair in zip(*(saves or {}).get(k.unit, ((), ())), strict=True)],
                }
                for k in space.knobs
            ],
            "left_out": [{"name": name, "reason": reason} for name, reason in space.left_out],
            "axes": len(graph.axes),
            "channel_multiple": target.multiple(str(identity.get("isa", "default"))),
        },
        "baseline": baseline.to_json(),
        "self_checks": list(self_checks),
        "trials": [trial.to_json() for trial in trials],
        "front": [point.to_json() for point in points],
        "untrained": [point.to_json() for point in untrained],
        "trained": [point.to_json() for point in trained],
        "quantised": [point.to_json() for point in quantised],
        "finished": finished,
        "notes": list(notes),
    }
