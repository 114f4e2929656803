"""report.html: one file that works offline.

The page's own script is small and builds everything with DOM calls, never from HTML text, so names of models,
layers and files can't inject anything; the record travels as JSON with ``<`` escaped.

One file because everything in it becomes the one JSON value that the page reads.
"""

from __future__ import annotations

import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from hwprune.common import formatting
from hwprune.common.files import write_atomic
from hwprune.records import pareto
from hwprune.records.record import MEASURED, Record
from hwprune.report.picture import WORD, drop_range, searched
from hwprune.report.text import chain, number, recommended, speedup_text, trained, verdict

LEGEND = {
    "measured": "scored on the split that the search never saw and measured again in fresh processes; bars are intervals.",
    "table": "scored on the split that the search never saw; latencies are PREDICTED from a table, not measured.",
    "estimated": "scored on the split that the search never saw; latencies are ESTIMATED from a data sheet, not measured.",
}


def write_page(record: Record, path: Path) -> None:
    """Write the page."""
    from plotly.offline import get_plotlyjs

    template = resources.files("hwprune.report").joinpath("page.html").read_text(encoding="utf-8")
    title = f"{record.data['workload']['name']} on {record.data['target']['name']}"
    data = json.dumps(page_data(record), allow_nan=False).replace("<", "\\u003c")
    parts = {"title": html.escape(title), "plotly": get_plotlyjs().replace("</script", "<\\/script"), "data": data}
    write_atomic(path, re.sub(r"\{\{(title|plotly|data)\}\}", lambda match: parts[match[1]], template))


def page_data(record: Record) -> dict[str, Any]:
    """The data that the page shows; numbers are text already where they are only read."""
    base = record.data["baseline"]
    dense = record.dense_metric
    on_front = {point["trial"] for point in record.data["front"]}
    return {
        "verdict": verdict(record),
        "notes": record.data["notes"],
        "metric": record.data["workload"]["metric"],
        "range": drop_range(record),
        "word": WORD[record.latency_source],
        "legend": LEGEND[record.latency_source],
        "chosen": recommended(record),
        "dense": {
            "metric": number(dense["value"]),
            "interval": f"[{number(dense['ci_low'])}, {number(dense['ci_high'])}]",
            "latency": formatting.seconds(base["latency"]["value"]),
            "params": formatting.count(base["params"]),
            "macs": formatting.count(base["macs"]),
            "size": formatting.size(base["size_bytes"]),
            "self": speedup_text(base["self_speedup"]),
            "latency_ms": 1000 * base["latency"]["value"],
            "size_mb": base["size_bytes"] / 1e6,
        },
        "front": [_point(record, point) for point in record.data["front"]],
        "quantised": [_mark(record, point) for point in record.data.get("quantised", ()) if point["trial"] not in on_front],
        "trials": [_trial(row) for row in record.data["trials"] if row["state"] == "measured" and searched(row)],
        "failures": [
            [str(row["number"]), row["failure"]["stage"], row["failure"]["reason"]]
            for row in record.data["trials"]
            if row["state"] in ("failed", "stopped")
        ],
        "training": _training(record),
        "precision": precision_rows(record),
        "history": history(record),
        "left_out": [[item["name"], item["reason"]] for item in record.data["space"]["left_out"]],
        "quality": _quality(record),
        "environment": _environment(record),
    }


def _trial(row: dict[str, Any]) -> dict[str, Any]:
    choices = row["recipe"]["choices"]
    return {
        "x": row["speedup"]["value"],
        "y": row["drop"],
        "ms": 1000 * row["latency"]["value"],
        "mb": row["size_bytes"] / 1e6,
        "text": f"trial {row['number']} ({row['origin']})<br>{speedup_text(row['speedup'])}"
        f"<br>drop {row['drop']:+.4f} (validation)"
        f"<br>{formatting.count(row['params'])} parameters, {len(choices)} units pruned",
    }


def _mark(record: Record, point: dict[str, Any]) -> dict[str, Any]:
    """The point as the picture shows it: on the final split, and as the search saw it on validation."""
    row = record.trial(point["trial"])
    drop_before = row["drop"] if row.get("drop") is not None else point["drop"]
    return {
        "trial": point["trial"],
        "trained": trained(record, point["trial"]),
        "reference": (row.get("quantised") or {}).get("of") == "dense",
        "x": point["speedup"]["value"],
        "low": point["speedup"]["ci_low"],
        "high": point["speedup"]["ci_high"],
        "y": point["drop"],
        "searched": {"x": row["speedup"]["value"], "y": drop_before, "ms": 1000 * row["latency"]["value"]},
        "ms": 1000 * point["latency"]["value"],
        "mb": point["size_bytes"] / 1e6,
        "speedup": speedup_text(point["speedup"]),
        "metric": number(point["metric"]["value"]),
        "interval": f"[{number(point['metric']['ci_low'])}, {number(point['metric']['ci_high'])}]",
        "drop": f"{point['drop']:+.4f}",
        "latency": formatting.seconds(point["latency"]["value"]),
        "params": formatting.count(point["params"]),
        "size": formatting.size(point["size_bytes"]),
        "split": point["split"],
    }


def _point(record: Record, point: dict[str, Any]) -> dict[str, Any]:
    row = record.trial(point["trial"])
    return {
        **_mark(record, point),
        "macs": formatting.count(point["macs"]) if point["macs"] is not None else "",
        "compensation": row["recipe"]["compensation"],
        "layers": unit_rows(record, point),
        "times": _times(record, point),
        "chain": chain(record, point["trial"]),
        "kernels": _kernels(point),
        "model": f"candidates/{point['trial']}/{record.model_file}",
        "recipe": f"candidates/{point['trial']}/recipe.json",
    }


def unit_rows(record: Record, point: dict[str, Any]) -> list[dict[str, Any]]:
    """Every unit of the search at one point: what is kept of it; of what was left alone the reason, as far as it is known."""
    row = record.trial(point["trial"])
    choices = {choice["unit"]: choice for choice in row["recipe"]["choices"]}
    gone = {name for name, before, here in _times(record, point) if before and not here}
    dropped = any(choice["pattern"] == "branch" for choice in choices.values())
    multiple = record.data["space"].get("channel_multiple", 1)
    rows = []
    for unit in record.data["space"]["units"]:
        choice = choices.get(unit["name"])
        sparsity = choice["sparsity"] if choice else 0.0
        kept = unit["size"] - round(sparsity * unit["size"])
        pattern, why = (choice["pattern"], "") if choice else ("dense", "")
        if choice is None and dropped and unit["name"].rpartition(":")[0] in gone:
            kept, pattern, why = 0, "gone", "with the branch that it lies in"
        elif choice is None:
            why = _why_alone(unit)
        elif pattern in ("channel", "neuron", "hidden") and multiple > 1 and kept % multiple:
            why = f"{kept} pad to {-(-kept // multiple) * multiple}: the kernels work in steps of {multiple}"
        rows.append(
            {
                "unit": unit["name"], "role": unit["role"], "share": kept / max(1, unit["size"]),
                "kept": ("dropped" if choice else "kept") if unit["role"] == "branch" else f"{kept} of {unit['size']}",
                "pattern": pattern, "method": choice["method"] if choice else "", "why": why,
            }
        )  # fmt: skip
    return rows


def _why_alone(unit: dict[str, Any]) -> str:
    """The table's word on a unit that stays dense; nothing where there is none (samplers that know no prices)."""
    saves = [share for size, share in unit.get("saves", ()) if size < unit["size"]]
    if not saves:
        return ""
    most = 100 * max(saves)
    return f"would save at most {most:.1f} % of the time by itself" if most > 0.05 else "none of its sizes saves time here"


def _times(record: Record, point: dict[str, Any]) -> list[list[Any]]:
    """Layer, microseconds in the dense model, microseconds here: by the runtime's own profiler. What is gone has 0."""
    before = record.data["baseline"].get("footprint", {}).get("layers") or {}
    here = point.get("footprint", {}).get("layers") or {}
    if not before or not here:
        return []
    names = list(dict.fromkeys([*before, *here]))
    return [[name, 1e6 * before.get(name, 0.0), 1e6 * here.get(name, 0.0)] for name in names]


def _kernels(point: dict[str, Any]) -> list[list[str]]:
    """The runtime's account of what it made of the model: sparse kernels and why not, kernels by kind, as far as it tells."""
    facts = point.get("footprint", {}).get("runtime") or {}
    rows = []
    for name, value in facts.items():
        if isinstance(value, dict):
            rows.append([str(name), ", ".join(f"{key}: {count}" for key, count in value.items())])
        elif isinstance(value, list):
            rows += [[str(name), json.dumps(item)] for item in value]
        else:
            rows.append([str(name), str(value)])
    return rows


def precision_rows(record: Record) -> list[list[str]]:
    """The dense model and every point in each precision that was tried, by what it was made of."""
    rows = []
    on_front = {point["trial"] for point in record.data["front"]}
    for point in record.data.get("quantised", ()):
        quantised = record.trial(point["trial"])["quantised"]
        of = quantised["of"]
        rows.append(
            [
                f"trial {point['trial']}{' (front)' if point['trial'] in on_front else ''}", quantised["precision"],
                "the dense model" if of == "dense" else f"trial {of}{trained(record, of)}", speedup_text(point["speedup"]),
                f"{point['drop']:+.4f}", formatting.size(point["size_bytes"]),
                f"{quantised['layers']} of {quantised['weighted']} layers",
            ]
        )  # fmt: skip
    return rows


def history(record: Record) -> dict[str, Any]:
    """Hypervolume of what was measured so far, after each trial; and what each kind of proposal has brought.

    Against the corner (largest drop of the picture, speedup 1), as shares of the final one.
    """
    rows = [row for row in record.data["trials"] if row["state"] == "measured" and searched(row)]
    reference = (drop_range(record)[1], 1.0)
    volumes, points = [], []
    for row in rows:
        points.append((row["drop"], row["speedup"]["value"]))
        points = pareto.non_dominated(points, lambda pair: pair)
        volumes.append(pareto.hypervolume(points, reference))
    last = volumes[-1] if volumes and volumes[-1] > 0 else 1.0
    best = set(points)
    kinds: dict[str, list[int]] = {}
    for row in rows:
        kind = kinds.setdefault(row["origin"], [0, 0])
        kind[0] += 1
        kind[1] += (row["drop"], row["speedup"]["value"]) in best
    return {
        "numbers": [row["number"] for row in rows],
        "volumes": [round(volume / last, 5) for volume in volumes],
        "kinds": [[name, str(count), str(hits)] for name, (count, hits) in sorted(kinds.items(), key=lambda pair: -pair[1][0])],
    }


def _training(record: Record) -> list[list[str]]:
    """Every trained candidate beside itself without training."""
    before = {point["trial"]: point for point in record.data.get("untrained", ())}
    on_front = {point["trial"] for point in record.data["front"]}
    rows = []
    for point in record.data.get("trained", ()):
        recovery = record.trial(point["trial"])["recovery"]
        plan, first = recovery["plan"], before.get(recovery["of"])
        rows.append(
            [
                f"trial {point['trial']}{' (front)' if point['trial'] in on_front else ''}", f"trial {recovery['of']}",
                f"{plan['kind']}:{plan['epochs']:g}", speedup_text(point["speedup"]),
                f"{first['drop']:+.4f}" if first else "", f"{point['drop']:+.4f}",
                f"{number(recovery['before'])} to {number(recovery['after'])}",
                f"{formatting.duration(recovery['seconds'])}, {formatting.count(recovery['examples'])} examples",
            ]
        )  # fmt: skip
    return rows


def _quality(record: Record) -> list[list[str]]:
    base = record.data["baseline"]
    speedups = [row["speedup"] for row in record.data["trials"] if row["state"] == "measured"]
    shares = sorted(s["conditions"].get("contended", 0.0) for s in speedups)
    wide = sum(1 for s in speedups if not s["conditions"].get("converged", True))
    clock = base["self_speedup"]["conditions"].get("clock", "")
    words = {
        "thread_cpu": "CPU time of the measuring thread", "wall": "wall time", "cuda_event": "events in the GPU's stream",
        "table": "none: PREDICTED from a table", "estimated": "none: ESTIMATED from a data sheet",
    }  # fmt: skip
    rows = [
        ["Clock", words.get(clock, clock)],
        ["Dense against itself", f"{speedup_text(base['self_speedup'])} (1.00 must lie inside)"],
    ]
    if record.latency_source != MEASURED:
        return rows[:1]  # the rest tells of a measurement, and there was none
    for check in record.data.get("self_checks", []):
        passed = "" if check.get("passed", True) else ": NOT passed, measured again where possible"
        rows.append([f"... after {check['trials']} trials", speedup_text(check) + passed])
    throttled = sum(1 for s in speedups if s["conditions"].get("throttled"))
    if throttled:
        rows.append(["Measurements while the device slowed itself down", f"{throttled} of {len(speedups)}"])
    if shares:
        rows.append(["Contended quads, median trial", formatting.percent(shares[len(shares) // 2])])
        rows.append(["Search measurements that hit their time limit", f"{wide} of {len(speedups)}"])
    return rows


def _environment(record: Record) -> list[list[str]]:
    identity = record.data["fingerprint"]["identity"]
    job, space = record.data["job"], record.data["space"]
    source = record.latency_source
    rows = [
        ["Workload", record.data["workload"]["source"] or "a live Python object"],
        ["Input", ", ".join("x".join(map(str, shape)) for shape in record.data["workload"]["example_shapes"])],
        ["Target", record.data["target"]["description"]],
        [
            "Latency",
            {"measured": "measured", "table": "PREDICTED from a table", "estimated": "ESTIMATED from a data sheet"}[source],
        ],
        *(
            [
                [
                    "Latency table of" if source == "table" else "Device",
                    f"{identity['device']} ({identity.get('isa', '?')}, {identity.get('cores', '?')} cores)",
                ],
                ["Runtime", f"{identity.get('runtime')}, {identity.get('threads')} thread(s), {identity.get('precision')}"],
            ]
            if "device" in identity
            else []
        ),
        ["Load average", ", ".join(map(str, record.data["fingerprint"]["conditions"].get("load_average", [])))],
        [
            "Search",
            f"{job['sampler']}, seed {job['seed']}, space {space['name']} (10^{space['size_log10']:.0f} recipes)",
        ],
        ["Compensation", record.data["space"]["compensation"]],
        ["Written", record.data["written"]],
    ]
    return rows + [[name, version] for name, version in record.data["versions"].items()]
