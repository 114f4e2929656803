"""trials.csv and front.csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from hwprune.common.files import write_atomic
from hwprune.records.record import Record, recipe_text
from hwprune.report import fleet_table

FRONT_COLUMNS = (
    "trial", "metric", "metric_ci_low", "metric_ci_high", "drop", "latency_s", "speedup", "speedup_ci_low", "speedup_ci_high",
    "params", "macs", "size_bytes", "clock", "latency_source", "model", "recipe", "verdict",
    "loaded_bytes", "peak_bytes", "joules", "recovery", "trained_from", "train_seconds", "drop_before_training",
    "precision", "quantised_from", "drop_ci_low", "drop_ci_high", "told_drop", "told_high", "sure",
)  # fmt: skip
TRIAL_COLUMNS = (
    "trial", "state", "origin", "metric", "metric_ci_low", "metric_ci_high", "drop", "latency_s", "speedup", "speedup_ci_low",
    "speedup_ci_high", "params", "macs", "size_bytes", "clock", "contended", "throttled", "verdict", "latency_source", "seconds",
    "failure_stage", "failure_reason", "divergence", "divergence_unit", "predicted_divergence", "predicted_ratio", "feasible",
    "digest", "choices", "drop_ci_low", "drop_ci_high",
)  # fmt: skip


def write_tables(record: Record, run: Path) -> None:
    """Write both files of a run directory."""
    write_atomic(run / record.front_file, front_csv(record))
    write_atomic(run / "trials.csv", trials_csv(record))


def front_csv(record: Record) -> str:
    """The dense model first, then the front, slowest first."""
    base = record.data["baseline"]
    rows = [_row(record, "dense", record.dense_metric, 0.0, base, "baseline")]
    for point in record.data["front"]:
        row = _row(record, point["trial"], point["metric"], point["drop"], point, f"candidates/{point['trial']}")
        rows.append({**row, **training_of(record, point["trial"]), **quantisation_of(record, point["trial"])})
    rows = [{**row, **fleet_table.cells(record, point)} for row, point in zip(rows, [base, *record.data["front"]], strict=True)]
    return _csv((*FRONT_COLUMNS, *fleet_table.columns(record)), rows)


def _row(
    record: Record, name: object, metric: dict[str, Any], drop: float, numbers: dict[str, Any], folder: str
) -> dict[str, Any]:
    footprint = numbers.get("footprint", {})
    speedup = numbers.get("speedup") or numbers["self_speedup"]
    return {
        "trial": name,
        "metric": metric["value"],
        "metric_ci_low": metric["ci_low"],
        "metric_ci_high": metric["ci_high"],
        "drop": drop,
        "latency_s": numbers["latency"]["value"],
        "speedup": speedup["value"],
        "speedup_ci_low": speedup["ci_low"],
        "speedup_ci_high": speedup["ci_high"],
        "params": numbers["params"],
        "macs": numbers["macs"],
        "size_bytes": numbers["size_bytes"],
        "clock": speedup["conditions"].get("clock", ""),
        "latency_source": record.latency_source,
        "model": f"{folder}/{record.model_file}",
        "recipe": "" if name == "dense" else f"{folder}/recipe.json",
        "verdict": "" if name == "dense" else verdict_of(speedup, record.latency_source),
        "loaded_bytes": footprint.get("loaded_bytes"),
        "peak_bytes": footprint.get("peak_bytes"),
        "joules": footprint.get("joules"),
        "drop_ci_low": numbers.get("paired_drop", {}).get("ci_low"),
        "drop_ci_high": numbers.get("paired_drop", {}).get("ci_high"),
        **{name: numbers.get(name) for name in ("told_drop", "told_high", "sure")},
    }


def training_of(record: Record, number: object) -> dict[str, Any]:
    """The columns on what training has done to a point; none for one that was not trained.

    ``drop_before_training`` is on the same split as the front where that point was confirmed without training too.
    """
    recovery = next((t.get("recovery") for t in record.data["trials"] if t["number"] == number), None)
    if not recovery:
        return {}
    before = next((p["drop"] for p in record.data.get("untrained", ()) if p["trial"] == recovery["of"]), None)
    plan = recovery["plan"]
    return {
        "recovery": f"{plan['kind']}:{plan['epochs']:g}", "trained_from": recovery["of"],
        "train_seconds": round(recovery["seconds"], 3), "drop_before_training": before,
    }  # fmt: skip


def quantisation_of(record: Record, number: object) -> dict[str, Any]:
    """The precision of a point's file and what it was made of (a trial, or ``dense``); nothing for one in 32 bits."""
    quantised = next((t.get("quantised") for t in record.data["trials"] if t["number"] == number), None)
    return {"precision": quantised["precision"], "quantised_from": quantised["of"]} if quantised else {}


def verdict_of(speedup: dict[str, Any], source: str) -> str:
    """``faster``, ``slower``, or ``not distinguishable`` from dense, by the interval; of what was not measured, just that."""
    if source != "measured":
        return "predicted" if source == "table" else "estimated"
    return "faster" if speedup["ci_low"] > 1 else "slower" if speedup["ci_high"] < 1 else "not distinguishable"


def trials_csv(record: Record) -> str:
    """Every evaluated recipe by number; empty cells where a failed trial has no number."""
    rows = []
    source = record.latency_source
    for row in record.data["trials"]:
        metric, speedup = row.get("metric", {}), row.get("speedup", {})
        failure = row.get("failure", {})
        conditions = speedup.get("conditions", {})
        rows.append(
            {
                "trial": row["number"],
                "state": row["state"],
                "origin": row["origin"],
                "metric": metric.get("value"),
                "metric_ci_low": metric.get("ci_low"),
                "metric_ci_high": metric.get("ci_high"),
                "drop": row.get("drop"),
                "drop_ci_low": row.get("paired_drop", {}).get("ci_low"),
                "drop_ci_high": row.get("paired_drop", {}).get("ci_high"),
                "latency_s": row.get("latency", {}).get("value"),
                "speedup": speedup.get("value"),
                "speedup_ci_low": speedup.get("ci_low"),
                "speedup_ci_high": speedup.get("ci_high"),
                "params": row.get("params"),
                "macs": row.get("macs"),
                "size_bytes": row.get("size_bytes"),
                "clock": conditions.get("clock"),
                "contended": conditions.get("contended"),
                "throttled": conditions.get("throttled"),
                "verdict": verdict_of(speedup, source) if speedup else None,
                "latency_source": source if speedup else None,
                "divergence": row.get("divergence", {}).get("value"),
                "divergence_unit": row.get("divergence", {}).get("unit"),
                "predicted_divergence": row.get("predicted", {}).get("divergence"),
                "predicted_ratio": row.get("predicted", {}).get("ratio"),
                "feasible": feasible(record, row),
                "seconds": round(sum(row["seconds"].values()), 3),
                "failure_stage": failure.get("stage"),
                "failure_reason": failure.get("reason"),
                "digest": row["digest"],
                "choices": recipe_text(row["recipe"]),
            }
        )
    return _csv(TRIAL_COLUMNS, rows)


def feasible(record: Record, row: dict[str, Any]) -> bool | None:
    """Does a trial meet the job's constraints, by what the search measured? None if it was not measured."""
    if row["state"] != "measured":
        return None
    job = record.data["job"]
    limits = (
        (job.get("max_drop"), row["drop"], 1), (job.get("min_speedup"), row["speedup"]["value"], -1),
        (job.get("max_latency_s"), row["latency"]["value"], 1), (job.get("max_size"), row["size_bytes"], 1),
    )  # fmt: skip
    return all(limit is None or sign * value <= sign * limit for limit, value, sign in limits)


def _csv(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
