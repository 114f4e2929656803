"""record.json: everything that was measured, derived from the study."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune import runtimes
from hwprune.common.files import dump_json, write_atomic
from hwprune.layers.labels import labels
from hwprune.layers.units import Unit
from hwprune.records.trial import Trial
from hwprune.searching.evaluating.dense import Baseline
from hwprune.searching.final.final_round import FinalFront
from hwprune.searching.resolved_job import ResolvedJob
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.study.store import Store
from hwprune.structure.model_graph import ModelGraph
from hwprune.version import VERSION
from hwprune.workload.workload import Workload

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Whose numbers these are.

    Attributes:
        identity: device, driver, runtime and options: must match before numbers are compared.
        conditions: load, clocks, temperature at the start.
        isa: the device's instruction set, which decides the channel multiple.
    """

    identity: Mapping[str, Any]
    conditions: Mapping[str, Any]
    isa: str


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
    found = {"hwprune": VERSION, "python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def build_record(
    *,
    job: ResolvedJob,
    workload: Workload,
    fingerprint: Fingerprint,
    space: SearchSpace,
    graph: ModelGraph,
    units: Mapping[str, Unit],
    calibration_sha256: str = "",
    savings_by_size: Mapping[str, tuple[list[int], list[float]]] | None = None,
    baseline: Baseline,
    trials: Sequence[Trial],
    final: FinalFront | None,
    created: str,
    notes: Sequence[str],
    self_checks: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The record as JSON values; its schema is in docs/files.md."""
    metric, target = workload.scoring, job.target
    names = labels(units.values())
    derived = job.training is not None or bool(job.precisions)
    return {
        "schema": SCHEMA,
        "created": created,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "job": job.job.to_json(),
        "latency_source": job.job.latency_source,
        "workload": {
            "name": workload.name,
            "source": workload.source,
            "metric": metric.name,
            "higher_is_better": metric.higher_is_better,
            **({"class_axis": list(metric.class_axis)} if metric.class_axis else {}),
            "calibration_sha256": calibration_sha256,
            "example_shapes": [list(x.shape) for x in workload.example_inputs],
        },
        "target": {
            "name": target.name,
            "description": target.description,
            "runtime": target.runtime,
            "file": runtimes.get(target.runtime).file if job.measured else "model.onnx",
            "precision": target.precision,
            "threads": target.threads,
            "profile": target.to_json(),
            **(
                {"fleet": [{"profile": one.to_json(), "weight": job.weights[one.name]} for one in job.targets]}
                if job.others
                else {}
            ),
        },
        "fingerprint": {"identity": dict(fingerprint.identity), "conditions": dict(fingerprint.conditions)},
        "space": {
            "name": space.file.name,
            "compensation": space.compensation,
            "size_log10": round(space.size_log10, 2),
            "units": [
                {
                    "name": k.unit,
                    "label": names.get(k.unit, k.unit),
                    "role": k.role,
                    "size": k.size,
                    "levels": {p: list(v) for p, v in k.levels.items()},
                    "methods": list(k.methods),
                    "saves": [list(pair) for pair in zip(*(savings_by_size or {}).get(k.unit, ((), ())), strict=True)],
                }
                for k in space.units
            ],
            "left_out": [{"name": name, "reason": reason} for name, reason in space.left_out],
            "axes": len(graph.axes),
            "channel_multiple": target.multiple(str(fingerprint.identity.get("isa", "default"))),
        },
        "baseline": baseline.to_json(),
        "self_checks": list(self_checks),
        "trials": [trial.to_json() for trial in trials],
        "front": [point.to_json() for point in final.points] if final else [],
        "untrained": [point.to_json() for point in final.untrained] if final and derived else [],
        "trained": [point.to_json() for point in final.trained] if final else [],
        "quantised": [point.to_json() for point in final.quantised] if final else [],
        "finished": final is not None,
        "notes": list(notes),
    }


class RecordWriter:
    """Writes record.json: while the search runs every few seconds, and never for more than a twentieth of the time.

    Args:
        facts: what `build_record` takes of the search as a whole.
        store: of the study.
    """

    def __init__(self, run: Path, store: Store, facts: Mapping[str, Any]) -> None:
        self._run, self._store, self._facts = run, store, dict(facts)
        self._written = 0.0
        self._writing_s = 0.0

    def snapshot(self, dense: Baseline, notes: Sequence[str], self_checks: Sequence[dict[str, Any]]) -> None:
        """Write an unfinished record, if it is time."""
        now = time.monotonic()
        if now - self._written > max(5.0, 20 * self._writing_s):
            self.write(dense, notes, self_checks)
            self._written = time.monotonic()
            self._writing_s = self._written - now

    def write(
        self, dense: Baseline, notes: Sequence[str], self_checks: Sequence[dict[str, Any]], final: FinalFront | None = None
    ) -> None:
        """Write the record. ``final`` None: the search is not finished."""
        record = build_record(
            **self._facts,
            baseline=dense,
            trials=self._store.trials(),
            final=final,
            created=str(self._store.read("created")),
            notes=notes,
            self_checks=self_checks,
        )
        write_atomic(self._run / "record.json", dump_json(record))
