"""One model's staircases on several targets: which sizes are worth keeping everywhere, and which help one and hurt another."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from itertools import pairwise

from hwprune.common import formatting
from hwprune.common.html_table import document
from hwprune.probe.findings import Probe, UnitProbe
from hwprune.probe.probe_files import STYLE
from hwprune.probe.staircase import worthwhile
from hwprune.report.text import table

MOST_UNITS = 12
"""Units that are drawn, those with the largest share of the time on any target."""
TOLERANCE = 0.05
"""A smaller size is worth it if it saves this share of the unit's time, or more: what noise and micro-measurements don't give."""
SHOWN = 6
"""Sizes that a cell of the table holds; probe.csv has all."""
COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")


def relative(unit: UnitProbe) -> dict[int, float]:
    """Kept count -> time of the unit's layers, as a share of what they take uncut."""
    times = {step.keep: step.seconds for step in unit.steps}
    whole = times.get(unit.size) or max(times.values(), default=1.0)
    return {count: seconds / whole for count, seconds in times.items()}


def shared_units(probes: Sequence[Probe]) -> list[str]:
    """Names of units that every probe has steps of, the largest share of the time first; of those that are alike the first."""
    by_name = [{unit.name: unit for unit in probe.units if unit.steps and unit.like is None} for probe in probes]
    names = [name for name in by_name[0] if all(name in units for units in by_name)]
    return sorted(names, key=lambda name: -max(units[name].share for units in by_name))


def good_everywhere(units: Sequence[UnitProbe]) -> list[int]:
    """Kept counts that end a stair on every target: no larger count is as fast on any of them. Largest first."""
    ends = [set(worthwhile(relative(unit), TOLERANCE)) for unit in units]
    return sorted(set.intersection(*ends), reverse=True)


def hurt(probes: Sequence[Probe], name: str) -> list[str]:
    """Counts at which one target gets faster and another slower than uncut, or than a larger count; in words."""
    times = {probe.target: relative(_unit(probe, name)) for probe in probes}
    counts = sorted(set.intersection(*(set(found) for found in times.values())))
    told = []
    for count, above in pairwise(counts):
        slower = [target for target, found in times.items() if found[count] > 1.05 * found[above]]
        faster = [target for target, found in times.items() if found[count] < 0.95 * found[above]]
        if slower and faster:
            told.append(f"{count} of {above}: slower on {', '.join(slower)}, faster on {', '.join(faster)}")
    return told


def _unit(probe: Probe, name: str) -> UnitProbe:
    return next(unit for unit in probe.units if unit.name == name)


def rows(probes: Sequence[Probe]) -> list[list[str]]:
    """The dense latency and the channel multiple of each target, then the sizes of units that are good on each, and on all."""
    lines = [
        ["dense", *(formatting.seconds(probe.dense_s) for probe in probes), ""],
        ["channel multiple", *(str(probe.multiple) for probe in probes), ""],
    ]
    for name in shared_units(probes)[:MOST_UNITS]:
        units = [_unit(probe, name) for probe in probes]
        ends = [_few(worthwhile(relative(unit), TOLERANCE)) for unit in units]
        lines.append([units[0].shown, *ends, _few(good_everywhere(units))])
    return lines


def _few(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts[:SHOWN])) + (", ..." if len(counts) > SHOWN else "")


def text(probes: Sequence[Probe], width: int) -> str:
    """For a terminal."""
    header = ["sizes where a stair ends", *(probe.target for probe in probes), "everywhere"]
    told = [f"  {_unit(probes[0], name).shown}: {one}" for name in shared_units(probes) for one in hurt(probes, name)]
    parts = [f"{probes[0].workload} on {len(probes)} targets", table(header, rows(probes), width)]
    if told:
        parts.append("\n".join(["Where the next size below hurts one target and helps another:", *told[:MOST_UNITS]]))
    return "\n\n".join(parts)


def page(probes: Sequence[Probe]) -> str:
    """One self-contained file, with the staircases drawn together. Names are escaped."""
    e = html.escape
    header = ["sizes where a stair ends", *(probe.target for probe in probes), "everywhere"]
    head = "".join(f'<th scope="col">{e(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{e(row[0])}</th>'
        + "".join(f'<td data-label="{e(name)}">{e(cell)}</td>' for name, cell in zip(header[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows(probes)
    )
    names = shared_units(probes)[:MOST_UNITS]
    told = "".join(f"<li>{e(_unit(probes[0], name).shown)}: {e(one)}</li>" for name in names for one in hurt(probes, name))
    title = f"hwprune probe: {probes[0].workload} on {', '.join(probe.target for probe in probes)}"
    links = ", ".join(f'<a href="{e(probe.target)}/probe.html">{e(probe.target)}</a>' for probe in probes)
    picture = (
        f'<p><img alt="Relative time of units over the kept count, a line for each target; the numbers are in each probe.csv" '
        f'src="data:image/png;base64,{_picture(probes, names)}"></p>'
        if names
        else ""
    )
    parts = [
        f"<h1>{e(title)}</h1><p>Each by itself: {links}.</p>",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
        f"<h2>Where the next size below hurts one target and helps another</h2><ul>{told}</ul>" if told else "",
        f"<h2>Staircases</h2><p>Time of a unit's layers, as a share of what they take uncut.</p>{picture}",
    ]
    return document(title, f"<main>{''.join(parts)}</main>", STYLE)


def _picture(probes: Sequence[Probe], names: Sequence[str]) -> str:
    from matplotlib.figure import Figure

    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * lines + 0.4), dpi=110, layout="constrained")
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(lines, columns, place)
        for probe, colour in zip(probes, COLOURS * len(probes), strict=False):
            found = relative(_unit(probe, name))
            counts = sorted(found)
            axes.plot(
                counts, [found[count] for count in counts], "o-", markersize=3, linewidth=1, color=colour, label=probe.target
            )
        shown = _unit(probes[0], name).shown
        axes.set_title((shown if len(shown) <= 34 else "..." + shown[-31:]).replace("$", r"\$"), fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if place > len(names) - columns:
            axes.set_xlabel("kept", fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
