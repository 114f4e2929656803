"""front.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwprune.record import Record, latency_source

WORD = {"measured": "measured", "table": "PREDICTED (not measured)", "estimated": "ESTIMATED (not measured)"}
HOW = {"measured": "measured again", "table": "predicted from a table", "estimated": "estimated from a data sheet"}


def write_picture(record: Record, path: Path) -> None:
    """Drop against speedup: every trial, the front with its intervals, dense. Up and right is better."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    measured = [row for row in record["trials"] if row["state"] == "measured"]
    axes.scatter(
        [row["speedup"]["value"] for row in measured], [row["drop"] for row in measured], s=14, color="#9aa4b2",
        label="candidates (validation split, searched)", zorder=2,
    )  # fmt: skip
    points = record["front"]
    if points:
        xs, ys = [p["speedup"]["value"] for p in points], [p["drop"] for p in points]
        axes.errorbar(
            xs, ys, xerr=_errors(points), fmt="o-", color="#1768ac", ecolor="#1768ac", elinewidth=1, capsize=3, markersize=6,
            label=f"front ({points[0]['split']} split, {HOW[latency_source(record)]})", zorder=3,
        )  # fmt: skip
    axes.scatter([1.0], [0.0], marker="*", s=140, color="#d1495b", label="dense", zorder=4)
    low, high = drop_range(record)
    axes.set_ylim(high, low)
    axes.set_xlabel(f"{WORD[latency_source(record)]} speedup over dense")
    axes.set_ylabel(f"drop in {record['workload']['metric']} (up is better)")
    axes.set_title(f"{record['workload']['name']} on {record['target']['description']}", fontsize=10, loc="left")
    axes.grid(color="#e3e6ea", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def drop_range(record: Record) -> tuple[float, float]:
    """What the picture shows of the drop: the front and its surroundings; ruined candidates lie outside."""
    drops = [point["drop"] for point in record["front"]] or [
        row["drop"] for row in record["trials"] if row["state"] == "measured"
    ]
    low, high = min([0.0, *drops]), max([0.0, *drops])
    room = 0.15 * (high - low) or 0.01
    return low - room, high + room


def _errors(points: list[dict[str, Any]]) -> list[list[float]]:
    return [
        [p["speedup"]["value"] - p["speedup"]["ci_low"] for p in points],
        [p["speedup"]["ci_high"] - p["speedup"]["value"] for p in points],
    ]
