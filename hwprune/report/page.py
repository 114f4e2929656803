"""report.html: one file that works offline.

The page's own script is small and builds everything with DOM calls, never from HTML text, so names of models,
layers and files can't inject anything; the record travels as JSON with ``<`` escaped.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

from hwprune.common import formatting
from hwprune.common.files import write_atomic
from hwprune.records.record import MEASURED, Record
from hwprune.report import cascade_page
from hwprune.report.details import (
    candidate_rows,
    environment_rows,
    kernels,
    kind_rows,
    layer_times,
    precision_rows,
    quality_rows,
    training_rows,
    unit_rows,
)
from hwprune.report.fleet_table import fleet_rows, sentence, targets_of
from hwprune.report.picture import HOW, WORD, drop_range, searched
from hwprune.report.text import (
    chain,
    change,
    counts,
    is_share,
    points_text,
    recommended,
    score,
    speedup_text,
    trained,
    why_recommended,
)

LEGEND = {
    "measured": "Scored on {split}, and measured again in fresh processes; bars are intervals of the speedup. The line shows the "
    "best that a wish for speed gets.",
    "table": "Scored on {split}; latencies are PREDICTED from a table, not measured.",
    "estimated": "Scored on {split}; latencies are ESTIMATED from a data sheet, not measured.",
}
SPLITS = {
    "test": "examples that the search never saw",
    "validation": "the validation examples, which the search chose by, so that true drops are larger",
}
WRONG = ("PREDICTED", "ESTIMATED", "No candidate surely", "No finalist held up", "The workload has no test split")
"""Beginnings of notes that must be read before any number."""


def write_page(record: Record, path: Path, run: Path | None = None) -> None:
    """Write the page.

    Args:
        run: the run directory, for the commands that it shows; default: the page's folder.
    """
    files = resources.files("hwprune.report")
    title = f"{record.data['workload']['name']} on {record.target_label}"
    data = json.dumps(page_data(record, run or path.parent), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title), "data": data,
        **{name: files.joinpath(file).read_text(encoding="utf-8").rstrip() for name, file in (
            ("css", "page.css"), ("chart", "chart.js"), ("page", "page.js"),
        )},
    }  # fmt: skip
    template = files.joinpath("page.html").read_text(encoding="utf-8")
    write_atomic(path, re.sub(r"\{\{(title|css|chart|page|data)\}\}", lambda match: parts[match[1]], template))


def _split(record: Record) -> str:
    """The split that a front would be scored on."""
    return "test" if record.data["baseline"].get("test_metric") else "validation"


def page_data(record: Record, run: Path) -> dict[str, Any]:
    """The data that the page shows; numbers are text already where they are only read."""
    base, dense = record.data["baseline"], record.dense_metric
    on_front = {point["trial"] for point in record.data["front"]}
    worst = drop_range(record)[1]
    notes = record.data["notes"]
    split = record.data["front"][0]["split"] if record.data["front"] else _split(record)
    return {
        "verdict": counts(record),
        "wrong": [note for note in notes if note.startswith(WRONG)],
        "notes": [note for note in notes if not note.startswith(WRONG)],
        "metric": record.data["workload"]["metric"],
        "higher": record.data["workload"].get("higher_is_better", True),
        "percent": is_share(record),
        "split": split,
        "how": HOW[record.latency_source],
        "word": WORD[record.latency_source],
        "legend": LEGEND[record.latency_source].format(split=SPLITS[split]),
        "max_drop": record.data["job"]["max_drop"],
        "chosen": recommended(record),
        "why": why_recommended(record),
        "dense": {
            "metric": score(record, dense["value"]),
            "interval": f"[{score(record, dense['ci_low'])}, {score(record, dense['ci_high'])}]",
            "final": dense["value"],
            "searched": base["metric"]["value"],
            "latency": formatting.seconds(base["latency"]["value"]),
            "params": formatting.count(base["params"]),
            "macs": formatting.count(base["macs"]),
            "size": formatting.size(base["size_bytes"]),
            "latency_ms": 1000 * base["latency"]["value"],
            "size_mb": base["size_bytes"] / 1e6,
        },
        "front": [_point(record, point, run) for point in record.data["front"]],
        "quantised": [_mark(record, point) for point in record.data.get("quantised", ()) if point["trial"] not in on_front],
        "trials": [
            _trial(record, row, worst)
            for row in record.data["trials"]
            if row["state"] == "measured" and searched(row) and row["number"] not in on_front
        ],
        "failures": [
            [str(row["number"]), row["failure"]["stage"], row["failure"]["reason"]]
            for row in record.data["trials"]
            if row["state"] in ("failed", "stopped")
        ],
        "candidates": candidate_rows(record),
        "training": training_rows(record),
        "precision": precision_rows(record),
        "kinds": kind_rows(record),
        "left_out": [[item["name"], item["reason"]] for item in record.data["space"]["left_out"]],
        "cascade": cascade_page.of_run(run),
        "targets": fleet_rows(record),
        "target_names": targets_of(record),
        "targets_agree": sentence(record),
        "quality": quality_rows(record),
        "environment": environment_rows(record),
    }


def _trial(record: Record, row: dict[str, Any], worst: float) -> dict[str, Any]:
    return {
        "x": row["speedup"]["value"],
        "score": row["metric"]["value"],
        "inside": row["drop"] <= worst,
        "ms": 1000 * row["latency"]["value"],
        "mb": row["size_bytes"] / 1e6,
        "tip": _tip(record, row, row, "validation"),
    }


def _tip(record: Record, row: dict[str, Any], numbers: dict[str, Any], split: str) -> str:
    """What is shown of a point where it is: a few lines of text."""
    metric = f"{record.data['workload']['metric']} {score(record, numbers['metric']['value'])}"
    return "\n".join(
        [
            f"trial {row['number']}{trained(record, row['number'])}",
            speedup_text(numbers["speedup"]),
            f"{metric} on {split}, drop {points_text(record, numbers)}",
            f"{formatting.seconds(numbers['latency']['value'])}, {formatting.size(row['size_bytes'])}, "
            f"{formatting.count(row['params'])} parameters",
        ]
    )


def _mark(record: Record, point: dict[str, Any]) -> dict[str, Any]:
    """The point as the picture shows it: on the final split, and as the search saw it on validation."""
    row = record.trial(point["trial"])
    before = row if row.get("metric") else {**row, **point}
    quantised = row.get("quantised") or {}
    return {
        "trial": point["trial"],
        "trained": trained(record, point["trial"]),
        "reference": quantised.get("of") == "dense",
        "precision": quantised.get("precision", ""),
        "x": point["speedup"]["value"],
        "low": point["speedup"]["ci_low"],
        "high": point["speedup"]["ci_high"],
        "score": point["metric"]["value"],
        "ms": 1000 * point["latency"]["value"],
        "mb": point["size_bytes"] / 1e6,
        "tip": _tip(record, row, point, point["split"]),
        "searched": {
            "x": before["speedup"]["value"], "score": before["metric"]["value"], "ms": 1000 * before["latency"]["value"],
            "tip": _tip(record, row, before, "validation"),
        },
        "speedup": speedup_text(point["speedup"]),
        "metric": score(record, point["metric"]["value"]),
        "interval": f"[{score(record, point['metric']['ci_low'])}, {score(record, point['metric']['ci_high'])}]",
        "drop": points_text(record, point),
        "latency": formatting.seconds(point["latency"]["value"]),
        "params": formatting.count(point["params"]),
        "size": formatting.size(point["size_bytes"]),
        "split": point["split"],
    }  # fmt: skip


def _point(record: Record, point: dict[str, Any], run: Path) -> dict[str, Any]:
    row = record.trial(point["trial"])
    return {
        **_mark(record, point),
        "hero": _hero(record, point),
        "command": f"hwprune export {shlex.quote(str(run))} --trial {point['trial']} --out deploy",
        "macs": formatting.count(point["macs"]) if point["macs"] is not None else "",
        "compensation": row["recipe"]["compensation"],
        "layers": unit_rows(record, point),
        "times": layer_times(record, point),
        "chain": chain(record, point["trial"]),
        "kernels": kernels(point),
        "model": f"candidates/{point['trial']}/{record.model_file}",
        "recipe": f"candidates/{point['trial']}/recipe.json",
    }


def _hero(record: Record, point: dict[str, Any]) -> dict[str, str]:
    """The three figures at the top: what each is, and how sure."""
    base, speedup = record.data["baseline"], point["speedup"]
    processes = speedup["conditions"].get("processes", 1)
    how = f"between {speedup['ci_low']:.2f}x and {speedup['ci_high']:.2f}x, in {processes} processes"
    before, after = base["size_bytes"], point["size_bytes"]
    parameters = f"{formatting.count(base['params'])} → {formatting.count(point['params'])} parameters"
    return {
        "speedup": f"{speedup['value']:.2f}x",
        "speedup_note": how if record.latency_source == MEASURED else WORD[record.latency_source],
        "metric": f"{score(record, record.dense_metric['value'])} → {score(record, point['metric']['value'])}",
        "metric_note": change(record, point),
        "size": f"{formatting.size(before)} → {formatting.size(after)}",
        "size_note": f"{before / max(1, after):.1f}x smaller; {parameters}",
    }
