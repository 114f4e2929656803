"""A cascade beside the dense model and the best single one: rows, a sentence, and a picture on the axes of the front."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprune.common import formatting

if TYPE_CHECKING:
    from hwprune.records.measurement import Measurement

HEADER = ["", "mean speedup", "drop", "mean", "worst", "p95", "p50"]


def rows(result: Any) -> list[list[str]]:
    """A row a system, for a table; ``result`` is a `hwprune.deploy.cascading.CascadeResult`."""
    names = {
        "dense": "dense", "cascade": "two files", "one file": "one file with If",
        "single": f"trial {result.single} alone",
    }  # fmt: skip
    found = []
    for name, told in result.systems.items():
        latency, faster = told.latency, told.latency.speedup
        seconds = (latency.mean.value, latency.worst, latency.quantile(0.95), latency.quantile(0.5))
        told_of_dense = ["", ""]
        others = [formatting.speedup(faster.value, faster.ci_low, faster.ci_high), _drop(told.drop, share=result.share)]
        found.append([names[name], *(told_of_dense if name == "dense" else others), *map(formatting.seconds, seconds)])
    return found


def _drop(drop: Measurement, *, share: bool) -> str:
    if not share:
        return f"{drop.value:.4g} [{drop.ci_low:.4g}, {drop.ci_high:.4g}]"
    return f"{100 * drop.value:.1f} [{100 * drop.ci_low:.1f}, {100 * drop.ci_high:.1f}] points"


def verdict(result: Any) -> str:
    """A sentence: does stopping early pay here?"""
    best = result.systems[result.deploy].latency
    form = "The one file with If" if result.deploy == "one file" else "Two files with their runner"
    other = "" if result.without_one_file is None else f" There is no one file: {result.without_one_file}."
    single = result.systems.get("single")
    alone = f"trial {result.single} alone" if single is not None else "the dense model, which is the best single one,"
    reference = single.latency if single is not None else result.systems["dense"].latency
    faster = result.over_single
    if faster.ci_low > 1:
        low, high = formatting.percent(1 / faster.ci_high), formatting.percent(1 / faster.ci_low)
        told = f"{form} takes {formatting.percent(1 / faster.value)} [{low}, {high}] of the time of {alone} in the mean"
    elif faster.ci_high < 1:
        told = f"It does not pay: {alone} takes {formatting.percent(faster.value)} of the cascade's mean"
    else:
        told = f"It makes no sure difference: {form[0].lower()}{form[1:]} and {alone} take about as long in the mean"
    mine = _drop(result.systems[result.deploy].drop, share=result.share)
    other_drop = "" if single is None else f", and that of {alone} {_drop(single.drop, share=result.share)}"
    told += f". Its drop on {result.split} is {mine}{other_drop}"
    missed = "".join(f" Missed: {fault}." for fault in result.missed)
    return f"{told}. Its slowest inputs take {best.worst / reference.worst:.2f} times as long.{other}{missed}"


def write(result: Any, out: Path) -> None:
    """cascade.png: drop against mean latency, of every model alone and of the pair at every threshold, on validation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = 100 if result.share else 1
    figure = Figure(figsize=(8, 7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes, lower = figure.subplots(2, 1, height_ratios=[5, 2])
    _draw_latencies(lower, result)
    dense_s = result.models["dense"][1]
    limit = scale * max(0.0, result.plan.drop)
    models = {key: (dense_s / seconds, scale * drop) for key, (drop, seconds) in result.models.items()}
    axes.plot(
        [dense_s / seconds for _, seconds in result.curve], [scale * drop for drop, _ in result.curve], color="#c7791b",
        linewidth=1.5, label=f"{named(result.plan.first)}, then {named(result.plan.second)}: every threshold", zorder=2,
    )  # fmt: skip
    xs, ys = [x for x, _ in models.values()], [y for _, y in models.values()]
    axes.scatter(xs, ys, s=36, color="#1768ac", label="one model for all inputs", zorder=3)
    axes.scatter(
        [dense_s / result.plan.seconds], [scale * result.plan.drop], marker="*", s=160, color="#c7791b",
        label="chosen, judged on other folds", zorder=4,
    )  # fmt: skip
    for key, (x, y) in models.items():
        axes.annotate(named(key), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7)
    shown = [y for _, y in models.values() if y <= 4 * limit + scale * 0.03] or [0.0]
    room = 0.15 * (max(shown) - min(0.0, *shown)) or scale * 0.005
    axes.set_ylim(max(shown) + room, min(0.0, *shown) - room)  # better is up
    seen = [dense_s / seconds for drop, seconds in result.curve if scale * drop <= max(shown) + room]
    seen += [x for x, y in models.values() if y <= max(shown) + room]
    axes.set_xlim(0.9 * min(seen), 1.08 * max(seen))
    axes.set_xlabel("speedup of the mean over dense, from the first look at each model alone")
    axes.set_ylabel(f"drop{', points' if result.share else ''}: what validation says it is surely below")
    axes.grid(color="#e3e6ea", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    temporary = out / "cascade.part.png"
    figure.savefig(temporary, format="png")
    temporary.replace(out / "cascade.png")


def _draw_latencies(axes: Any, result: Any) -> None:
    """How long inputs take, a line a system: from the median to the 95th percentile, and on to the slowest."""
    labels = [row[0] for row in rows(result)]
    for place, told in enumerate(result.systems.values()):
        latency = told.latency
        half, most, worst, mean = (
            1000 * seconds for seconds in (latency.quantile(0.5), latency.quantile(0.95), latency.worst, latency.mean.value)
        )
        axes.plot([half, worst], [place, place], color="#9aa3ad", linewidth=1.5, zorder=2)
        axes.plot([half, most], [place, place], color="#1768ac", linewidth=6, solid_capstyle="butt", zorder=3)
        axes.scatter([worst], [place], marker="|", s=90, color="#9aa3ad", zorder=3)
        axes.scatter([mean], [place], s=34, color="#c7791b", zorder=4)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms for one input: median to 95th percentile (blue), slowest (grey), mean (orange)")
    axes.grid(axis="x", color="#e3e6ea", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def of_run(run: Path) -> dict[str, Any] | None:
    """What the report of a run shows of the cascade in its folder; None without one.

    ``told``: the sentence; ``table``: rows, the names of the columns first; ``picture``: a data URI.
    """
    facts, picture = run / "cascade" / "cascade.json", run / "cascade" / "cascade.png"
    if not facts.is_file() or not picture.is_file():
        return None
    data = json.loads(facts.read_text(encoding="utf-8"))
    if "told" not in data:  # of an earlier version
        return None
    drawn = base64.b64encode(picture.read_bytes()).decode()
    return {"told": data["told"], "table": data["table"], "picture": f"data:image/png;base64,{drawn}"}


def named(key: str) -> str:
    """A model, or a part of one, in words: ``12@35%`` is trial 12 until 35 % of its work."""
    if key.endswith(" rest"):
        return "the rest"
    model, _, share = key.partition("@")
    name = model if model == "dense" else f"trial {model}"
    return f"{name} until {share.removesuffix('%')} % of its work" if share else name
