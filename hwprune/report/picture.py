"""front.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwprune.records.record import Record

WORD = {"measured": "measured", "table": "PREDICTED (not measured)", "estimated": "ESTIMATED (not measured)"}
HOW = {"measured": "measured again", "table": "predicted from a table", "estimated": "estimated from a data sheet"}


def write_picture(record: Record, path: Path) -> None:
    """Draw drop against speedup: every trial, the front with its intervals, dense. Up and right is better."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    measured = [row for row in record.data["trials"] if row["state"] == "measured" and searched(row)]
    axes.scatter(
        [row["speedup"]["value"] for row in measured], [row["drop"] for row in measured], s=14, color="#9aa4b2",
        label="candidates (validation split, searched)", zorder=2,
    )  # fmt: skip
    points = record.data["front"]
    if points:
        xs, ys = [p["speedup"]["value"] for p in points], [p["drop"] for p in points]
        axes.errorbar(
            xs, ys, xerr=_errors(points), yerr=_drop_errors(points), fmt="o-", color="#1768ac", ecolor="#1768ac", elinewidth=1,
            capsize=3, markersize=6,
            label=f"front ({points[0]['split']} split, {HOW[record.latency_source]})", zorder=3,
        )  # fmt: skip
    _draw_quantised(axes, record)
    axes.scatter([1.0], [0.0], marker="*", s=140, color="#d1495b", label="dense", zorder=4)
    low, high = drop_range(record)
    axes.set_ylim(high, low)
    axes.set_xlabel(f"{WORD[record.latency_source]} speedup over dense")
    axes.set_ylabel(f"drop in {record.data['workload']['metric']} (up is better)")
    axes.set_title(f"{record.data['workload']['name']} on {record.data['target']['description']}", fontsize=10, loc="left")
    axes.grid(color="#e3e6ea", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _drop_errors(points: list[dict[str, Any]]) -> list[list[float]]:
    """Paired intervals of the drops, below and above; none in records of earlier versions."""
    known = [(point["drop"], point.get("paired_drop") or {}) for point in points]
    return [
        [drop - interval.get("ci_low", drop) for drop, interval in known],
        [interval.get("ci_high", drop) - drop for drop, interval in known],
    ]


def searched(row: dict[str, Any]) -> bool:
    """Is a trial the search's own, and not made of another one afterwards?"""
    return not row.get("recovery") and not row.get("quantised")


def _draw_quantised(axes: Any, record: Record) -> None:
    """Draw what plain quantisation gives, by name, and the pruned and quantised points that are not on the front."""
    on_front = {point["trial"] for point in record.data["front"]}
    rows = {row["number"]: row for row in record.data["trials"]}
    rest = []
    for point in record.data.get("quantised", ()):
        quantised = rows[point["trial"]]["quantised"]
        x, y = point["speedup"]["value"], point["drop"]
        if quantised["of"] == "dense":
            axes.scatter([x], [y], marker="D", s=46, color="#d1495b", zorder=4)
            axes.annotate(
                f"dense, {quantised['precision']}", (x, y), xytext=(0, 8), textcoords="offset points", fontsize=8, ha="center"
            )
        elif point["trial"] not in on_front:
            rest.append((x, y))
    if rest:
        xs, ys = zip(*rest, strict=True)
        axes.scatter(xs, ys, marker="D", s=30, facecolors="none", edgecolors="#5b6675", label="pruned and quantised", zorder=3)


def drop_range(record: Record) -> tuple[float, float]:
    """The range of drops that the picture shows: the front and its surroundings; ruined candidates lie outside."""
    drops = [point["drop"] for point in record.data["front"]] or [
        row["drop"] for row in record.data["trials"] if row["state"] == "measured"
    ]
    drops += [point["drop"] for point in record.data.get("quantised", ()) if point["drop"] <= 2 * max([0.01, *drops])]
    low, high = min([0.0, *drops]), max([0.0, *drops])
    room = 0.15 * (high - low) or 0.01
    return low - room, high + room


def _errors(points: list[dict[str, Any]]) -> list[list[float]]:
    return [
        [p["speedup"]["value"] - p["speedup"]["ci_low"] for p in points],
        [p["speedup"]["ci_high"] - p["speedup"]["value"] for p in points],
    ]
