"""The front as text for a terminal."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hwprune.common import formatting
from hwprune.records.choosing import within
from hwprune.records.record import Record
from hwprune.report.fleet_table import fleet_rows, sentence, targets_of

READABLE = 110
"""Characters of a line of prose at most."""
FINE = 0.3
"""Half-width of a drop's interval, in points, below which a second digit says something."""


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
    metric = record.data["workload"]["metric"]
    parts = [wrapped(verdict(record), width)]
    latency = "latency" if not targets_of(record) else f"on {targets_of(record)[0]}"
    if record.data["front"]:
        parts.append(table(["", "speedup", "drop", metric, latency, "params", "file"], front_rows(record), width))
    if record.data["front"] and (rows := fleet_rows(record)):
        parts.append(table(["speedup by target", *targets_of(record)], rows, width))
        parts.append(wrapped(sentence(record), width))
    parts += [wrapped(f"Note: {note}", width) for note in record.data["notes"]]
    return "\n\n".join(parts)


def front_rows(record: Record) -> list[list[str]]:
    """The dense model and each point of the front: name, speedup, drop, metric, latency, parameters, file."""
    base, dense = record.data["baseline"], score(record, record.dense_metric["value"])
    size, latency = formatting.size(base["size_bytes"]), formatting.seconds(base["latency"]["value"])
    rows = [["dense", formatting.speedup(1.0), "", dense, latency, formatting.count(base["params"]), size]]
    for point in record.data["front"]:
        rows.append(
            [
                f"trial {point['trial']}{trained(record, point['trial'])}",
                speedup_text(point["speedup"]),
                points_text(record, point),
                score(record, point["metric"]["value"]),
                formatting.seconds(point["latency"]["value"]),
                formatting.count(point["params"]),
                formatting.size(point["size_bytes"]),
            ]
        )
    return rows


def wrapped(text: str, width: int) -> str:
    """Lines of at most ``width`` characters (and never more than a hundred or so, which nobody reads); words stay whole."""
    return textwrap.fill(text, min(width, READABLE), break_long_words=False, break_on_hyphens=False)


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
    rows = [["dense", "", formatting.speedup(1.0), score(record, dense["value"]), formatting.size(base["size_bytes"])]]
    for name, step in reversed(steps):
        point = points.get(step) or record.trial(step)
        mark = "" if step in points else " (search)"
        rows.append(
            [
                name + mark, f"trial {step}", speedup_text(point["speedup"]), score(record, point["metric"]["value"]),
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
    """What the search found, in a few sentences."""
    start = f"{record.data['workload']['name']} on {record.target_label}: {counts(record)}"
    return f"{start} {_recommendation(record)}" if record.data["finished"] and record.data["front"] else start


def counts(record: Record) -> str:
    """How many candidates there were, and how the front was scored and measured."""
    rows = [row for row in record.data["trials"] if not row.get("recovery") and not row.get("quantised")]
    states = {state: sum(1 for row in rows if row["state"] == state) for state in ("failed", "stopped")}
    words = {"failed": "failed", "stopped": "stopped early"}
    ends = " and ".join(f"{count} {words[state]}" for state, count in states.items() if count)
    start = (
        f"{formatting.some(len(rows), 'candidate')} of {recipes(record.data['space']['size_log10'])} possible recipes"
        f"{f' ({ends})' if ends else ''}"
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
    return f"{start}. The front has {_extent(record.data['front'])}, scored on the {split} split and {how}."


def why_recommended(record: Record) -> str:
    """Why the recommended point is it, in a few words."""
    if not record.data["front"]:
        return ""
    limit = _limit(record)
    if within(record.front, limit):
        sure = _how_sure(record.data["front"][recommended(record)], limit)
        return f"the fastest with a drop of at most {_limit_text(record)}{sure}"
    return f"the most accurate; none has a drop of at most {_limit_text(record)}"


def _extent(points: Sequence[dict[str, Any]]) -> str:
    first, last = (formatting.speedup(points[place]["speedup"]["value"]) for place in (0, -1))
    return f"one point at {first}" if len(points) == 1 else f"{len(points)} points from {first} to {last}"


def recipes(size_log10: float) -> str:
    """The size of a search space: 5832, or 10^16.6."""
    return f"10^{size_log10:.1f}" if size_log10 > 6 else f"{round(10**size_log10):d}"


def recommended(record: Record) -> int:
    """Index of the point to look at first: the fastest within ``max_drop`` or a usual drop, else the most accurate; -1: none."""
    points = record.front
    fits = within(points, _limit(record))
    return points.index(fits[-1]) if fits else 0 if points else -1


def _limit(record: Record) -> float:
    given = record.data["job"]["max_drop"]
    dense = record.dense_metric["value"]
    return formatting.usual_limit(dense, share=is_share(record)) if given is None else float(given)


def _limit_text(record: Record) -> str:
    """The limit on the drop in points of a share, else in the metric's own unit."""
    limit = _limit(record)
    return f"{100 * limit:g} {'point' if limit == 0.01 else 'points'}" if is_share(record) else f"{limit:g}"


def _recommendation(record: Record) -> str:
    point = record.data["front"][recommended(record)]
    speedup = f"{speedup_text(point['speedup'])}, {change(record, point)} on {point['split']} (trial {point['trial']})"
    if within(record.front, _limit(record)):
        sure, others = _how_sure(point, _limit(record)), _passed_over(record)
        return f"Fastest with a drop of at most {_limit_text(record)}{sure}: {speedup}.{others}"
    return f"None has a drop of at most {_limit_text(record)}; the most accurate: {speedup}."


def _passed_over(record: Record) -> str:
    """The fastest point that scores within the limit and is not taken, and why: people see it in the table."""
    limit, chosen = _limit(record), record.front[recommended(record)]
    others = [
        point for point in record.front
        if point.drop <= limit and point.told_high is not None and point.told_high > limit
        and point.speedup.value > chosen.speedup.value
    ]  # fmt: skip
    if not others:
        return ""
    fastest = max(others, key=lambda point: point.speedup.value)
    high = formatting.drop(fastest.told_high or 0.0, share=is_share(record))
    speed = formatting.speedup(fastest.speedup.value)
    return (
        f" Trial {fastest.trial} is faster ({speed}) and scores within it here, but validation was not 90 % sure of that (up to "
        f"{high}); more validation examples would decide."
    )


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


def is_share(record: Record) -> bool:
    """Is the metric a share of right answers, or the like, which is read in per cent?"""
    better = bool(record.data["workload"].get("higher_is_better", True))
    return formatting.is_share(record.dense_metric["value"], higher_is_better=better)


def score(record: Record, value: float) -> str:
    """A value of the metric: ``97.0 %`` of a share, else four digits."""
    return formatting.percent(value) if is_share(record) else number(value)


def points_text(record: Record, point: Mapping[str, Any]) -> str:
    """A drop with as many digits as its interval allows: ``2.2 points``, or in the metric's own unit."""
    if not is_share(record):
        return formatting.drop(point["drop"], share=False)
    paired = point.get("paired_drop") or {}
    half = 50 * (paired["ci_high"] - paired["ci_low"]) if paired else 0.0
    return f"{100 * point['drop']:.{2 if half < FINE else 1}f} points"


def change(record: Record, point: Mapping[str, Any]) -> str:
    """The drop in words, with its interval where there is one."""
    word = "drop" if point["drop"] >= 0 else "gain"
    text = points_text(record, {**point, "drop": abs(point["drop"])}).removeprefix("+")
    paired = point.get("paired_drop")
    if not paired:
        return f"{word} {text}"
    unit = 100 if is_share(record) else 1
    low, high = sorted(unit * (paired[key] if word == "drop" else -paired[key]) for key in ("ci_low", "ci_high"))
    return f"{word} {text} (95 %: {low:.2g} to {high:.2g})"
