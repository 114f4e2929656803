"""`hwprune rerank`: a finished front on another device, batch size or runtime, from its stored files; nothing is pruned again."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hwprune import runtimes
from hwprune.common import formatting
from hwprune.common.files import dump_json, write_atomic
from hwprune.deploy.exporting import whole_batches
from hwprune.deploy.verify import split_file
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import fresh
from hwprune.latency.bench import Bench
from hwprune.latency.fresh import Remeasured
from hwprune.latency.host import host
from hwprune.latency.samples import example_shapes
from hwprune.latency.worker_process import BenchLimits
from hwprune.records import pareto
from hwprune.records.measurement import Measurement
from hwprune.records.record import Point, read_record
from hwprune.records.target import Target
from hwprune.workload import metrics, sample_files, scoring
from hwprune.workload.metrics import Metric

COLUMNS = (
    "trial", "on_front", "speedup", "speedup_ci_low", "speedup_ci_high", "latency_s", "metric", "metric_ci_low", "metric_ci_high",
    "drop", "speedup_before", "drop_before", "failure",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reranked:
    """One point on the other target; ``failure`` and no numbers where its file does not run there.

    Attributes:
        on_front: does no other point dominate it there, and is it faster than dense?
        metric: None where the metric is a function of the workload's that was not given.
    """

    trial: int
    speedup: Measurement | None
    latency: Measurement | None
    metric: Measurement | None
    drop: float | None
    speedup_before: float
    drop_before: float
    on_front: bool = False
    failure: str = ""

    def row(self) -> dict[str, Any]:
        speedup, metric = self.speedup, self.metric
        return {
            "trial": self.trial, "on_front": self.on_front, "speedup": speedup and speedup.value,
            "speedup_ci_low": speedup and speedup.ci_low, "speedup_ci_high": speedup and speedup.ci_high,
            "latency_s": self.latency and self.latency.value, "metric": metric and metric.value,
            "metric_ci_low": metric and metric.ci_low, "metric_ci_high": metric and metric.ci_high, "drop": self.drop,
            "speedup_before": self.speedup_before, "drop_before": self.drop_before, "failure": self.failure,
        }  # fmt: skip


def rerank(
    run: Path,
    target: Target,
    batch: int | None = None,
    remote: str = "",
    metric: Metric | None = None,
    step: Callable[[int, int], None] | None = None,
) -> tuple[list[Reranked], dict[str, Any]]:
    """Measure and score every point of a run's front, and the dense model, on ``target``.

    Args:
        batch: examples of a batch whose latency counts; default: as in the run.
        remote: another machine that measures, as in `hwprune.search`.
        metric: of runs whose metric is a function of the user's.
        step: told (measurements done, all).

    Returns:
        The points, slowest first, and facts: target, identity, dense latency and metric.

    Raises:
        UsageError: the run has no front, or the target runs other files than the run has.
        CandidateFailure: the dense model does not run there.
    """
    record = read_record(run)
    if not record.front:
        raise UsageError(f"{run} has no confirmed front")
    name = record.model_file
    if (wanted := runtimes.get(target.runtime).file) != name:
        raise UsageError(f"target {target.name} runs {wanted} files, and the run has {name}: search on {target.name} itself")
    before = record.data["target"]
    was = runtimes.get(before["runtime"]).precision_of_file(before["precision"])
    now = runtimes.get(target.runtime).precision_of_file(target.precision)
    if was != now or "int8" in (target.precision, before["precision"]):
        raise UsageError(
            f"target {target.name} runs files in {target.precision}, and those of the run are in {before['precision']}: "
            "search on that target, or export the points in its precision"
        )
    models = {str(p.trial): run / "candidates" / str(p.trial) / name for p in record.front}
    for path in models.values():
        if not path.is_file():
            raise UsageError(f"{path} is missing: the front can't be measured without its files")
    dense = run / "baseline" / name
    metric = metric or metrics.of_record(record.data["workload"])
    machine = host(remote or None)
    try:
        with tempfile.TemporaryDirectory(prefix="hwprune-rerank-") as folder:
            example = _example(run, batch, Path(folder))
            shapes = example_shapes(example)

            def make() -> Bench:
                return Bench(target, BenchLimits(), machine, shapes)

            scores, failures, identity = _scores(make, models, dense, split_file(run, record), metric, Path(folder))
            runs = {key: path for key, path in models.items() if key not in failures}
            total, count = fresh.PROCESSES * fresh.SESSIONS * (1 + len(runs)), 0

            def counted() -> None:
                nonlocal count
                count += 1
                if step is not None:
                    step(count, total)

            measured = fresh.remeasure(runs, dense, example, make, step=counted)
    finally:
        machine.close()
    if "dense" not in measured:
        raise CandidateFailure("measure", f"the dense model does not run on target {target.name}")
    points = [_point(point, measured, scores, failures, metric) for point in record.front]
    facts = {
        "target": target.name, "description": target.description, "run_target": record.data["target"]["name"],
        "identity": identity,
        "batch": shapes[0][0] if shapes and shapes[0] else None, "dense_latency": measured["dense"][0].to_json(),
        "dense_self_speedup": measured["dense"][1].to_json(),
        "dense_metric": scores["dense"].to_json() if "dense" in scores else None,
        "higher_is_better": record.data["workload"].get("higher_is_better", True), "metric": record.data["workload"]["metric"],
    }  # fmt: skip
    return _ranked(points), facts


def _example(run: Path, batch: int | None, folder: Path) -> Path:
    stored = run / "baseline" / "example.npz"
    if batch is None:
        return stored
    with np.load(stored, allow_pickle=False) as arrays:
        arrays_of_size = whole_batches({name: arrays[name] for name in arrays.files}, batch, repeat=True)
    np.savez(folder / "example.npz", allow_pickle=False, **arrays_of_size)
    return folder / "example.npz"


def _scores(
    make: Callable[[], Bench], models: dict[str, Path], dense: Path, samples: Path, metric: Metric | None, folder: Path
) -> tuple[dict[str, Measurement], dict[str, str], dict[str, Any]]:
    """Metric of each model on the split that the front was scored on, why others don't run, and whose numbers these are."""
    scores: dict[str, Measurement] = {}
    failures: dict[str, str] = {}
    out = folder / "outputs.npz"
    targets = sample_files.read_targets(samples)
    usable = metric is not None and (metric.agreement or all(t is not None for t in targets))
    reference: scoring.Outputs | None = None
    with make() as bench:
        identity = bench.identity()
        for key, path in {"dense": dense, **models}.items():
            try:
                bench.load("model", path)
                bench.run("model", samples, out)
                outputs = scoring.read_outputs(out)
                reference = outputs if key == "dense" else reference
                if usable and metric is not None:
                    scores[key] = scoring.score(metric, outputs, targets, reference)
            except CandidateFailure as failure:
                if key == "dense":
                    raise
                failures[key] = failure.reason
    return scores, failures, identity


def _point(
    point: Point,
    measured: Mapping[str, Remeasured],
    scores: dict[str, Measurement],
    failures: dict[str, str],
    metric: Metric | None,
) -> Reranked:
    key = str(point.trial)
    latency, speedup = measured.get(key, (None, None))
    score = scores.get(key)
    drop = metric.drop(scores["dense"].value, score.value) if metric is not None and score is not None else None
    failure = failures.get(key, "" if speedup is not None else "it failed while it was measured")
    return Reranked(
        point.trial,
        speedup,
        latency,
        score,
        drop,
        point.speedup.value,
        point.drop,
        failure=failure,
    )


def _ranked(points: Sequence[Reranked]) -> list[Reranked]:
    """The points by speedup, with who is on the front there. Where nothing could be scored the drop is the run's."""

    def drop(point: Reranked) -> float:
        return point.drop_before if point.drop is None else point.drop

    runs = [p for p in points if p.speedup is not None]
    faster = [p for p in runs if p.speedup is not None and p.speedup.value > 1 and p.speedup.ci_high > 1]
    best = {p.trial for p in pareto.non_dominated(faster, lambda p: (drop(p), p.speedup.value if p.speedup else 0.0))}
    ordered = sorted(runs, key=lambda p: p.speedup.value if p.speedup else 0.0)
    return [replace(p, on_front=p.trial in best) for p in ordered] + [p for p in points if p.speedup is None]


def write(points: Sequence[Reranked], facts: dict[str, Any], out: Path) -> None:
    """rerank.csv and rerank.json."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(point.row() for point in points)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "rerank.csv", stream.getvalue())
    write_atomic(out / "rerank.json", dump_json({"schema": 1, **facts, "points": [asdict(point) for point in points]}))


def text_rows(points: Sequence[Reranked], *, share: bool) -> list[list[str]]:
    """A row a point, for a terminal: trial, speedup there, before, drop there, before, is it on the front there.

    Args:
        share: the metric is one, and drops are told in points.
    """

    def drop(value: float | None) -> str:
        return "" if value is None else formatting.drop(value, share=share)

    rows = []
    for p in points:
        if p.speedup is None:
            rows.append([f"trial {p.trial}", "failed", f"{p.speedup_before:.2f}x", "", drop(p.drop_before), p.failure])
            continue
        rows.append(
            [
                f"trial {p.trial}", formatting.speedup(p.speedup.value, p.speedup.ci_low, p.speedup.ci_high),
                f"{p.speedup_before:.2f}x",
                drop(p.drop), drop(p.drop_before), "front" if p.on_front else "",
            ]
        )  # fmt: skip
    return rows


def rows_together(results: Mapping[str, Sequence[Reranked]]) -> list[list[str]]:
    """A row a point, a column a target: speedup with its interval, or that it failed; in the order of the first target."""
    first = next(iter(results.values()))
    rows = []
    for trial in (point.trial for point in first):
        cells = []
        for points in results.values():
            speedup = next(point.speedup for point in points if point.trial == trial)
            cells.append("failed" if speedup is None else formatting.speedup(speedup.value, speedup.ci_low, speedup.ci_high))
        rows.append([f"trial {trial}", *cells])
    return rows
