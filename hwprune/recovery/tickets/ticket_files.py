"""ticket.csv, ticket.json, ticket.png and ticket.safetensors."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from hwprune.common.files import dump_json, write_atomic
from hwprune.recovery.tickets.ticket_plan import TicketPlan
from hwprune.recovery.tickets.ticket_result import Interval, TicketRound, Tickets
from hwprune.version import VERSION

COLUMNS = (
    "workload", "sparsity", "winning", "winning_ci_low", "winning_ci_high", "random", "random_ci_low", "random_ci_high", "gain",
    "gain_ci_low", "gain_ci_high", "apart",
)  # fmt: skip


def write(found: Tickets, plan: TicketPlan, name: str, metric: str, folder: Path, transfer: str = "") -> list[Path]:
    """Write everything into a folder; the masks are those of the first seed's last round. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "ticket.csv", table(found, name, transfer))
    facts = {
        "schema": 1, "hwprune": VERSION, "torch": torch.__version__, "workload": name, "transfer": transfer, "metric": metric,
        "split": found.split, "rounds": plan.rounds, "share": plan.share, "rewind": plan.rewind, "seeds": plan.seeds,
        "training": plan.training.to_json(), "dense": list(found.dense),
        "points": [{**p.to_json(), "by_seed": {"winning": p.winning, "random": p.random}} for p in found.points],
        "transferred": [{**p.to_json(), "by_seed": {"winning": p.winning, "random": p.random}} for p in found.transferred],
    }  # fmt: skip
    write_atomic(folder / "ticket.json", dump_json(facts))
    masks = {mask: keep.cpu().to(torch.uint8) for mask, keep in found.masks.items()}
    write_atomic(folder / "ticket.safetensors", save(masks))
    picture(found, name, metric, folder / "ticket.png", transfer)
    return [folder / f"ticket.{kind}" for kind in ("csv", "json", "png", "safetensors")]


def table(found: Tickets, name: str, transfer: str = "") -> str:
    """The table as CSV, a row for each sparsity and workload."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for workload, points in ((name, found.points), (transfer, found.transferred)):
        for point in points:
            writer.writerow({"workload": workload, **point.to_json()})
    return out.getvalue()


def picture(found: Tickets, name: str, metric: str, path: Path, transfer: str = "") -> None:
    """Draw the metric against what is left, with the intervals over seeds as bands."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [(name, found.points)] + ([(transfer, found.transferred)] if found.transferred else [])
    figure = Figure(figsize=(7 * len(shown), 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    dense = Interval.of(found.dense)
    for place, (title, points) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), place + 1)
        xs = [100 * (1 - p.sparsity) for p in points]
        if place == 0:
            axes.axhspan(dense.low, dense.high, color="#d1495b", alpha=0.12, lw=0)
            axes.axhline(dense.mean, color="#d1495b", lw=1, label="all weights, trained the same way")
        _draw_band(axes, xs, [Interval.of(p.winning) for p in points], "#1768ac", "winning ticket")
        _draw_band(axes, xs, [Interval.of(p.random) for p in points], "#8a94a3", "random ticket, same sparsity a layer")
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks(xs, [f"{x:.3g}" for x in xs], fontsize=8)
        axes.minorticks_off()
        axes.set_xlabel("weights left, %")
        axes.set_ylabel(f"{metric} ({found.split} split)")
        axes.set_title(f"{title}, {len(found.dense)} seeds, 95 % intervals", fontsize=10, loc="left")
        axes.grid(color="#e3e6ea")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    temporary = path.with_suffix(".part.png")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _draw_band(axes: Any, xs: Sequence[float], intervals: Sequence[Interval], color: str, label: str) -> None:
    axes.plot(xs, [i.mean for i in intervals], "o-", color=color, ms=4, label=label)
    axes.fill_between(xs, [i.low for i in intervals], [i.high for i in intervals], color=color, alpha=0.15, lw=0)


def text(found: Tickets, name: str, metric: str, transfer: str = "") -> str:
    """The table for a terminal, and what it says."""
    dense = Interval.of(found.dense)
    lines = [f"{name}: all weights {metric} {dense.mean:.4f} [{dense.low:.4f}, {dense.high:.4f}] ({found.split} split)"]
    for workload, points, split, higher in (
        (name, found.points, found.split, found.higher_is_better),
        (transfer, found.transferred, found.transfer_split, found.transfer_higher_is_better),
    ):
        if not points:
            continue
        lines += ["", f"{workload} ({split} split):", "removed  winning ticket          random ticket           gain, paired"]
        lines += [_line(point) for point in points]
        apart = [p for p in points if p.apart and p.gain.mean * (1 if higher else -1) > 0]
        if apart:
            where = ", ".join(f"{100 * p.sparsity:.1f} %" for p in apart)
            lines.append(f"Winning tickets are better, and the intervals do not overlap, at: {where}.")
        else:
            lines.append("At no sparsity are the intervals of winning and random tickets apart.")
    return "\n".join(lines)


def _line(point: TicketRound) -> str:
    a, b, gain = Interval.of(point.winning), Interval.of(point.random), point.gain
    return (
        f"{100 * point.sparsity:5.1f} %  {a.mean:.4f} [{a.low:.4f}, {a.high:.4f}]  {b.mean:.4f} [{b.low:.4f}, {b.high:.4f}]  "
        f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    )
