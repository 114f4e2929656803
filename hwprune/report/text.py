"""The front as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hwprune.common import formatting
from hwprune.records.choosing import within
from hwprune.records.record import Record


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Columns aligned right (the first left); what doesn't fit the width is left out from the right, which a last line says."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    fitting = len(widths)
    while fitting > 1 and sum(widths[:fitting]) + 2 * (fitting - 1) > width:
        fitting -= 1
    shown = [
        "  ".join(cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(line[:fitting])).rstrip()
        for line in lines
    ]
    missing = [name for name in header[fitting:] if name]
    return "\n".join(shown + ([f"(no room for {', '.join(missing)})"] if missing else []))


def summary(record: Record, width: int = 100) -> str:
    """The front, the dense model first, and the notes."""
    base, metric = record.data["baseline"], record.data["workload"]["metric"]
    dense = record.dense_metric
    rows = [["dense", formatting.speedup(1.0), "", number(dense["value"]), formatting.seconds(base["latency"]["value"]),
             formatting.count(base["params"]), formatting.size(base["size_bytes"])]]  # fmt: skip
    for point in record.data["front"]:
        rows.append(
            [
                f"trial {point['trial']}{trained(record, point['trial'])}",
                speedup_text(point["speedup"]),
                f"{point['drop']:+.4f}",
                number(point["metric"]["value"]),
                formatting.seconds(point["latency"]["value"]),
                formatting.count(point["params"]),
                formatting.size(point["size_bytes"]),
            ]
        )
    parts = [verdict(record)]
    if record.data["front"]:
        parts.append(table(["", "speedup", "drop", metric, "latency", "params", "file"], rows, width))
    parts += [f"Note: {note}" for note in record.data["notes"]]
    return "\n\n".join(parts)


def trained(record: Record, number: int) -> str:
    """`` (distill:2, int8)`` of a trial that was trained and quantised so, else nothing."""
    row = record.trial(number)
    recovery, quantised = row.get("recovery"), row.get("quantised")
    steps = [f"{recovery['plan']['kind']}:{recovery['plan']['epochs']:g}"] if recovery else []
    if quantised:
        steps.append(f"{quantised['precision']}{' of the dense model' if quantised['of'] == 'dense' else ''}")
    return f" ({', '.join(steps)})" if steps else ""


def chain(record: Record, which: int) -> list[list[str]]:
    """The steps by which a candidate came about, a row each: dense, pruned, trained, quantised; with size, speed and metric.

    Numbers are those of the last measurement; ``(search)`` marks a step that was not confirmed with the front.
    """
    base, dense = record.data["baseline"], record.dense_metric
    steps: list[tuple[str, int]] = []
    row = record.trial(which)
    while True:
        quantised, recovery = row.get("quantised"), row.get("recovery")
        if quantised:
            steps.append((f"quantised to {quantised['precision']}", row["number"]))
            if quantised["of"] == "dense":
                break
            row = record.trial(quantised["of"])
        elif recovery:
            plan = recovery["plan"]
            steps.append((f"trained, {plan['kind']}:{plan['epochs']:g}", row["number"]))
            row = record.trial(recovery["of"])
        else:
            steps.append(("pruned", row["number"]))
            break
    points = {p["trial"]: p for key in ("untrained", "trained", "quantised", "front") for p in record.data.get(key, ())}
    rows = [["dense", "", formatting.speedup(1.0), number(dense["value"]), formatting.size(base["size_bytes"])]]
    for name, step in reversed(steps):
        point = points.get(step) or record.trial(step)
        mark = "" if step in points else " (search)"
        rows.append(
            [
                name + mark, f"trial {step}", speedup_text(point["speedup"]), number(point["metric"]["value"]),
                formatting.size(point["size_bytes"]),
            ]
        )  # fmt: skip
    return rows


def emptiness(record: Record) -> str:
    """Why the front is empty, in a few words."""
    rows = [row for row in record.data["trials"] if not row.get("recovery") and not row.get("quantised")]
    if not rows:
        return "none was evaluated"
    measured = [row for row in rows if row["state"] == "measured"]
    failures = Counter(f"{row['failure']['stage']}: {row['failure']['reason']}" for row in rows if row["state"] != "measured")
    if not measured:
        reason, count = failures.most_common(1)[0]
        return f"none could be measured ({count} of {len(rows)} failed with {reason})"
    fastest = max(row["speedup"]["value"] for row in measured)
    if fastest <= 1:
        return f"none is faster than dense (the fastest measured {formatting.speedup(fastest)})"
    return "none is faster than dense within the constraints"


def advice(record: Record) -> str:
    """What to do about an empty front, as a sentence."""
    states = {row["state"] for row in record.data["trials"]}
    if not states:
        return "Give the search more --time or --trials: most of what was prepared is kept."
    if "measured" not in states:
        return "trials.csv has the reason of each; --trial-timeout and --memory-limit are the limits of a candidate."
    return (
        "Loosen the limits, give it more --trials, recover accuracy by training (--recover distill:2), or see with "
        "`hwprune probe` what can be faster on this target."
    )


def verdict(record: Record) -> str:
    """One sentence on what the search found."""
    rows = [row for row in record.data["trials"] if not row.get("recovery") and not row.get("quantised")]
    counts = {state: sum(1 for row in rows if row["state"] == state) for state in ("failed", "stopped")}
    words = {"failed": "failed", "stopped": "stopped early"}
    ends = " and ".join(f"{count} {words[state]}" for state, count in counts.items() if count)
    start = (
        f"{record.data['workload']['name']} on {record.data['target']['name']}: {len(rows)} candidates of "
        f"{recipes(record.data['space']['size_log10'])} possible recipes{f' ({ends})' if ends else ''}"
    )
    if not record.data["finished"]:
        return f"{start}; the search is not finished."
    if not record.data["front"]:
        return f"{start}; {emptiness(record)}."
    high = record.data["front"][-1]
    split = high["split"]
    how = {
        "measured": f"measured in {high['speedup']['conditions'].get('processes', 1)} fresh processes",
        "table": "PREDICTED from a latency table, not measured",
        "estimated": "ESTIMATED from a data sheet, not measured",
    }[record.latency_source]
    return (
        f"{start}; a front of {_extent(record.data['front'])}, scored on the {split} split and {how}. {_recommendation(record)}"
    )


def _extent(points: Sequence[dict[str, Any]]) -> str:
    first, last = (formatting.speedup(points[place]["speedup"]["value"]) for place in (0, -1))
    return f"one point at {first}" if len(points) == 1 else f"{len(points)} points from {first} to {last}"


def recipes(size_log10: float) -> str:
    """The size of a search space: 5832, or 10^16.6."""
    return f"10^{size_log10:.1f}" if size_log10 > 6 else f"{round(10**size_log10):d}"


def recommended(record: Record) -> int:
    """Index of the point to look at first: the fastest within ``max_drop`` (or 0.01), else the most accurate; -1: none."""
    points = record.front
    fits = within(points, _limit(record))
    return points.index(fits[-1]) if fits else 0 if points else -1


def _limit(record: Record) -> float:
    given = record.data["job"]["max_drop"]
    return 0.01 if given is None else float(given)


def _recommendation(record: Record) -> str:
    point = record.data["front"][recommended(record)]
    speedup = f"{speedup_text(point['speedup'])} at drop {point['drop']:+.4f} (trial {point['trial']})"
    if within(record.front, _limit(record)):
        return f"Fastest with a drop of at most {_limit(record):g}{_how_sure(point, _limit(record))}: {speedup}."
    return f"None has a drop of at most {_limit(record):g}; the most accurate: {speedup}."


def _how_sure(point: dict[str, Any], limit: float) -> str:
    """Before the split that the front is scored on was looked at: it has chosen nothing, and may say otherwise."""
    if "told_high" not in point:
        return ""
    return " (by validation, 90 % sure)" if point["told_high"] <= limit else " (by validation, not sure)"


def speedup_text(speedup: dict[str, Any]) -> str:
    return formatting.speedup(speedup["value"], speedup["ci_low"], speedup["ci_high"])


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"
