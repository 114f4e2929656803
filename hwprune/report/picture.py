"""front.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwprune.records import pareto
from hwprune.records.record import Record
from hwprune.report.text import is_share

WORD = {"measured": "measured", "table": "PREDICTED (not measured)", "estimated": "ESTIMATED (not measured)"}
HOW = {"measured": "measured again", "table": "predicted from a table", "estimated": "estimated from a data sheet"}


LABEL = (60.0, 24.0)
"""Pixels that a label takes, across and up."""
LOG_FROM = 3.0
"""Range of speedups from which their axis is logarithmic."""


def write_picture(record: Record, path: Path) -> None:
    """Draw the metric against speedup; see `draw`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    draw(record, figure.add_subplot())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def draw(record: Record, axes: Any) -> None:
    """Draw the front: the metric on the split that the search never saw, upwards, against speedup, with intervals.

    A straight line between two points would claim what nobody has measured: the line goes in steps. Of an unfinished search the
    candidates are drawn, as the search saw them.

    Args:
        axes: of matplotlib.
    """
    percent = is_share(record)
    scale = 100 if percent else 1
    points = record.data["front"]
    dense = record.dense_metric["value"] if points else record.data["baseline"]["metric"]["value"]
    split = points[0]["split"] if points else "validation"
    best: Sequence[tuple[float, float]] = ()
    if points:
        best = _draw_front(axes, record, scale, dense)
    else:
        measured = [row for row in record.data["trials"] if row["state"] == "measured" and searched(row)]
        axes.scatter(
            [row["speedup"]["value"] for row in measured], [scale * row["metric"]["value"] for row in measured], s=14,
            color="#8d98a7", label="candidates of a search that is not finished", zorder=2,
        )  # fmt: skip
    _draw_quantised(axes, record, scale)
    axes.scatter([1.0], [scale * dense], marker="D", s=60, color="#c02f49", label="dense", zorder=4)
    _shade_limit(axes, record, scale, dense)
    speedups = [point["speedup"]["value"] for point in points] or [1.0]
    if max(speedups) / min(1.0, *speedups) > LOG_FROM:
        _logarithmic(axes)
    _label(axes, best)
    axes.set_xlabel(f"{WORD[record.latency_source]} speedup over dense")
    axes.set_ylabel(f"{record.data['workload']['metric']}{', %' if percent else ''} on {split}")
    axes.set_title(f"{record.data['workload']['name']} on {record.data['target']['description']}", fontsize=10, loc="left")
    axes.grid(color="#e3e6ea", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _shade_limit(axes: Any, record: Record, scale: float, dense: float) -> None:
    """Shade what is beyond the limit on the drop, and put what is better on top."""
    limit = record.data["job"]["max_drop"]
    higher = record.data["workload"].get("higher_is_better", True)
    if limit is not None:
        low, high = axes.get_ylim()
        edge = scale * (dense - limit if higher else dense + limit)
        axes.axhspan(*((low, max(low, edge)) if higher else (min(high, edge), high)), color="#c02f49", alpha=0.08, zorder=0)
        axes.set_ylim(low, high)
    if not higher:
        axes.invert_yaxis()


def _draw_front(axes: Any, record: Record, scale: float, dense: float) -> list[tuple[float, float]]:
    """Draw all points, and the line through those that no other beats, which are returned."""
    points = record.data["front"]
    xs, ys = [p["speedup"]["value"] for p in points], [scale * p["metric"]["value"] for p in points]
    axes.errorbar(
        xs, ys, xerr=_errors(points), fmt="o", color="#1768ac", ecolor="#1768ac", elinewidth=1, capsize=3, markersize=6,
        label=f"front ({points[0]['split']} split, {HOW[record.latency_source]})", zorder=3,
    )  # fmt: skip
    sign = 1 if record.data["workload"].get("higher_is_better", True) else -1
    best = pareto.non_dominated(list(zip(xs, ys, strict=True)), lambda pair: (-sign * pair[1], pair[0]))
    steps = [(1.0, scale * dense), *best]
    axes.step([x for x, _ in steps], [y for _, y in steps], where="pre", color="#1768ac", linewidth=1.5, zorder=2)
    return best


def _label(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """Write the speedup above each point, but where another one stands already."""
    taken: list[tuple[float, float]] = []
    for x, y in points:
        across, up = axes.transData.transform((x, y))
        if all(abs(across - other) > LABEL[0] or abs(up - height) > LABEL[1] for other, height in taken):
            taken.append((across, up))
            axes.annotate(f"{x:.2f}x", (x, y), xytext=(0, 7), textcoords="offset points", fontsize=7, ha="center")


def _logarithmic(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def searched(row: dict[str, Any]) -> bool:
    """Is a trial the search's own, and not made of another one afterwards?"""
    return not row.get("recovery") and not row.get("quantised")


def _draw_quantised(axes: Any, record: Record, scale: float) -> None:
    """Draw what plain quantisation gives, by name, and the pruned and quantised points that are not on the front."""
    on_front = {point["trial"] for point in record.data["front"]}
    rows = {row["number"]: row for row in record.data["trials"]}
    rest = []
    for point in record.data.get("quantised", ()):
        quantised = rows[point["trial"]]["quantised"]
        x, y = point["speedup"]["value"], scale * point["metric"]["value"]
        if quantised["of"] == "dense":
            axes.scatter([x], [y], marker="D", s=46, color="#c02f49", zorder=4)
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
