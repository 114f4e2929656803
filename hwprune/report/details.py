"""What the page says of one point and of the search around it, as rows of text."""

from __future__ import annotations

import json
from typing import Any

from hwprune.common import formatting
from hwprune.records import pareto
from hwprune.records.record import MEASURED, Record
from hwprune.report.fleet_table import measured_on
from hwprune.report.picture import searched
from hwprune.report.text import number, points_text, score, speedup_text, trained

CLOCKS = {
    "thread_cpu": "CPU time of the measuring thread", "wall": "wall time", "cuda_event": "events in the GPU's stream",
    "process": "clock of the runtime's own process",
    "table": "none: PREDICTED from a table", "estimated": "none: ESTIMATED from a data sheet",
}  # fmt: skip
SOURCES = {"measured": "measured", "table": "PREDICTED from a table", "estimated": "ESTIMATED from a data sheet"}


def unit_rows(record: Record, point: dict[str, Any]) -> list[dict[str, Any]]:
    """Every unit of the search at one point: what is kept of it; of what was left alone the reason, as far as it is known."""
    row = record.trial(point["trial"])
    choices = {choice["unit"]: choice for choice in row["recipe"]["choices"]}
    gone = {name for name, before, here in layer_times(record, point) if before and not here}
    dropped = any(choice["pattern"] == "branch" for choice in choices.values())
    multiple = record.data["space"].get("channel_multiple", 1)
    rows = []
    for unit in record.data["space"]["units"]:
        choice = choices.get(unit["name"])
        layer = unit["name"].rpartition(":")[0] or unit["name"]
        sparsity = choice["sparsity"] if choice else 0.0
        kept = unit["size"] - round(sparsity * unit["size"])
        pattern, why = (choice["pattern"], "") if choice else ("dense", "")
        if choice is None and dropped and layer in gone:
            kept, pattern, why = 0, "gone", "with the branch that it lies in"
        elif choice is None:
            why = _why_alone(unit)
        elif pattern in ("channel", "neuron", "hidden") and multiple > 1 and kept % multiple:
            why = f"{kept} pad to {-(-kept // multiple) * multiple}: the kernels work in steps of {multiple}"
        rows.append(
            {
                "unit": unit["name"], "label": unit.get("label", unit["name"]), "layer": layer, "role": unit["role"],
                "share": kept / max(1, unit["size"]),
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


def layer_times(record: Record, point: dict[str, Any]) -> list[list[Any]]:
    """Layer, microseconds in the dense model, microseconds here. What is gone has 0.

    The runtime's own profiler divides the measured latency among the layers: profiling takes time of its own in each of them, so
    its sums are above what was measured.
    """
    before = record.data["baseline"].get("footprint", {}).get("layers") or {}
    here = point.get("footprint", {}).get("layers") or {}
    if not before or not here:
        return []
    names = list(dict.fromkeys([*before, *here]))
    dense, now = (
        1e6 * measured["latency"]["value"] / max(sum(times.values()), 1e-12)
        for measured, times in ((record.data["baseline"], before), (point, here))
    )
    return [[name, dense * before.get(name, 0.0), now * here.get(name, 0.0)] for name in names]


def kernels(point: dict[str, Any]) -> list[list[str]]:
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
                points_text(record, point), formatting.size(point["size_bytes"]),
                f"{quantised['layers']} of {quantised['weighted']} layers",
            ]
        )  # fmt: skip
    return rows


def training_rows(record: Record) -> list[list[str]]:
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
                points_text(record, first) if first else "", points_text(record, point),
                f"{number(recovery['before'])} to {number(recovery['after'])}",
                f"{formatting.duration(recovery['seconds'])}, {formatting.count(recovery['examples'])} examples",
            ]
        )  # fmt: skip
    return rows


def kind_rows(record: Record) -> list[list[str]]:
    """Each kind of proposal: its trials, and how many of them are on the search's front."""
    rows = [row for row in record.data["trials"] if row["state"] == "measured" and searched(row)]
    best = {row["number"] for row in pareto.non_dominated(rows, lambda row: (row["drop"], row["speedup"]["value"]))}
    kinds: dict[str, list[int]] = {}
    for row in rows:
        kind = kinds.setdefault(row["origin"], [0, 0])
        kind[0] += 1
        kind[1] += row["number"] in best
    return [[name, str(count), str(hits)] for name, (count, hits) in sorted(kinds.items(), key=lambda pair: -pair[1][0])]


def candidate_rows(record: Record) -> list[list[dict[str, Any]]]:
    """All searched candidates for the table that can be sorted: of each cell its text, and what it is sorted by."""
    rows = []
    for row in record.data["trials"]:
        if not searched(row):
            continue
        measured = row["state"] == "measured"
        cut = len(row["recipe"]["choices"])
        rows.append(
            [
                _cell(str(row["number"]), row["number"]),
                _cell(row["origin"], row["origin"]),
                _cell(row["state"] if measured else f"{row['state']} ({row['failure']['stage']})", row["state"]),
                _cell(f"{row['speedup']['value']:.2f}x", row["speedup"]["value"]) if measured else _cell(),
                _cell(points_text(record, row), row["drop"]) if measured else _cell(),
                _cell(score(record, row["metric"]["value"]), row["metric"]["value"]) if measured else _cell(),
                _cell(formatting.size(row["size_bytes"]), row["size_bytes"]) if measured else _cell(),
                _cell(formatting.some(cut, "unit"), cut),
            ]
        )
    return rows


def _cell(text: str = "", key: float | str | None = None) -> dict[str, Any]:
    return {"text": text, "key": key}


def quality_rows(record: Record) -> list[list[str]]:
    """How good the measurement was: the dense model against itself, and the state of the machine."""
    base = record.data["baseline"]
    speedups = [row["speedup"] for row in record.data["trials"] if row["state"] == "measured"]
    shares = sorted(s["conditions"].get("contended", 0.0) for s in speedups)
    wide = sum(1 for s in speedups if not s["conditions"].get("converged", True))
    clock = base["self_speedup"]["conditions"].get("clock", "")
    rows = [
        ["Clock", CLOCKS.get(clock, clock)],
        ["Dense against itself", f"{speedup_text(base['self_speedup'])} (1.00 must lie inside)"],
    ]
    for name, found in measured_on(base).items():
        rows.append([f"... on {name}", speedup_text(found["speedup"])])
    if record.latency_source != MEASURED:
        return rows[:1]  # the rest tells of a measurement, and there was none
    for check in record.data.get("self_checks", []):
        passed = "" if check.get("passed", True) else ": NOT passed, measured again where possible"
        rows.append([f"... after {check['trials']} trials", speedup_text(check) + passed])
    throttled = sum(1 for s in speedups if s["conditions"].get("throttled"))
    if throttled:
        rows.append(["Measurements while the device slowed itself down", f"{throttled} of {len(speedups)}"])
    if shares:
        rows.append(["Share of measurements beside other work, median trial", formatting.percent(shares[len(shares) // 2])])
        rows.append(["Search measurements that hit their time limit", f"{wide} of {len(speedups)}"])
    return rows


def environment_rows(record: Record) -> list[list[str]]:
    """Where the numbers come from: workload, device, runtime, search, versions."""
    identity = record.data["fingerprint"]["identity"]
    job, space = record.data["job"], record.data["space"]
    source = record.latency_source
    rows = [
        ["Workload", record.data["workload"]["source"] or "a live Python object"],
        ["Input", ", ".join("x".join(map(str, shape)) for shape in record.data["workload"]["example_shapes"])],
        ["Target", record.data["target"]["description"]],
        *(
            ["...", f"{one['profile']['name']}: {one['profile']['description']}"]
            for one in record.data["target"].get("fleet", ())[1:]
        ),
        ["Latency", SOURCES[source]],
    ]
    if "device" in identity:
        device = f"{identity['device']} ({identity.get('isa', '?')}, {identity.get('cores', '?')} cores)"
        rows.append(["Latency table of" if source == "table" else "Device", device])
        rows.append(["Runtime", f"{identity.get('runtime')}, {identity.get('threads')} thread(s), {identity.get('precision')}"])
    load = record.data["fingerprint"]["conditions"].get("load_average", [])
    rows += [
        ["Load average", ", ".join(map(str, load))],
        ["Search", f"{job['sampler']}, seed {job['seed']}, space {space['name']} (10^{space['size_log10']:.0f} recipes)"],
        ["Compensation", record.data["space"]["compensation"]],
        ["Written", record.data["written"]],
    ]
    return rows + [[name, version] for name, version in record.data["versions"].items()]
