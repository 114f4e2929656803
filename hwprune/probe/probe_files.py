"""What a probe found: text for a terminal, CSV, JSON and an HTML page with pictures."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

from hwprune.common import formatting
from hwprune.common.files import csv_text, dump_json, write_atomic
from hwprune.common.html_table import document
from hwprune.probe.findings import Probe, UnitProbe
from hwprune.probe.staircase import worthwhile

COLUMNS = ("unit", "role", "size", "keep", "seconds", "half_width_s", "predicted_speedup_if_only_this", "share", "like", "source")
MOST_PICTURES = 24


def text(found: Probe, width: int = 100) -> str:
    """The probe as lines for a terminal."""
    word = {"measured": "measured", "estimated": "ESTIMATED, NOT MEASURED"}[found.source]
    shapes = ", ".join("x".join(map(str, shape)) for shape in found.shapes)
    lines = [f"{found.workload} on {found.target} ({word}): dense {formatting.seconds(found.dense_s)} for inputs {shapes}"]
    lines += [f"Warning: {warning}" for warning in found.warnings]
    if found.multiple_from:
        each = ", ".join(f"{name}: {multiple}" for name, multiple in found.multiple_from.items())
        lines.append(f"Channel multiple found on this runtime: {found.multiple} ({each})")
    lines += ["", "Most that each pattern can give (whole model, against dense):"]
    rows = []
    for pattern in found.patterns:
        numbers = pattern.speedup
        shown = formatting.speedup(numbers["value"], numbers["ci_low"], numbers["ci_high"]) if numbers else "-"
        rows.append((pattern.pattern, shown, pattern.verdict, pattern.what + (f"; {pattern.note}" if pattern.note else "")))
    lines += _table(rows, width)
    shown_units = [unit for unit in sorted(found.units, key=lambda u: -u.share) if unit.like is None]
    lines += [
        "",
        "Units by their share of the time (a layer between two units counts for both), and the counts at which a stair ends (keep: the model's predicted speedup if only this is cut):",
    ]
    rows = []
    for unit in shown_units:
        count = 1 + sum(other.like == unit.name for other in found.units)
        rows.append((unit.shown + (f" (x{count})" if count > 1 else ""), unit.role, formatting.percent(unit.share), stairs(unit)))
    lines += _table(rows, width)
    if found.operators:
        lines += [
            "",
            f"The runtime's own profile names {100 * found.profile_covers:.0f} % of its time by layer; the slowest operators:",
        ]
        slow = sorted(found.operators, key=lambda op: -op["seconds"])[:5]
        lines += _table(
            [(str(op["name"]), str(op["kind"]), formatting.seconds(op["seconds"]), str(op["kernel"])) for op in slow], width
        )
    return "\n".join(lines)


def stairs(unit: UnitProbe, most: int = 5) -> str:
    """``64: 1.00x, 48: 1.02x, ...``: counts worth proposing."""
    speedups = {step.keep: step.speedup for step in unit.steps}
    counts = worthwhile({step.keep: step.seconds for step in unit.steps})
    if len(counts) > most:
        counts = [counts[round(i * (len(counts) - 1) / (most - 1))] for i in range(most)]
    return ", ".join(f"{count}: {speedups[count]:.2f}x" for count in counts) or unit.note


def _table(rows: list[tuple[str, str, str, str]], width: int) -> list[str]:
    if not rows:
        return ["  none"]
    wide = [max(len(row[i]) for row in rows) for i in range(3)]
    wide[0] = min(wide[0], max(20, width - wide[1] - wide[2] - 30))
    lines = []
    for row in rows:
        name = row[0] if len(row[0]) <= wide[0] else row[0][: wide[0] - 3] + "..."
        line = f"  {name:{wide[0]}}  {row[1]:{wide[1]}}  {row[2]:{wide[2]}}  {row[3]}".rstrip()
        lines.append(line if len(line) <= width else line[: width - 3] + "...")
    return lines


def write(found: Probe, folder: Path) -> None:
    """probe.json, probe.csv and probe.html in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "probe.json", dump_json(found.to_json()))
    write_atomic(folder / "probe.csv", to_csv(found))
    write_atomic(folder / "probe.html", page(found))


def to_csv(found: Probe) -> str:
    """A row a unit and keep count."""
    rows = (
        [unit.name, unit.role, unit.size, step.keep, f"{step.seconds:.6g}", f"{step.half_width_s:.3g}", f"{step.speedup:.5g}",
         f"{unit.share:.4g}", unit.like or "", step.source]
        for unit in found.units
        for step in unit.steps
    )  # fmt: skip
    return csv_text(COLUMNS, [dict(zip(COLUMNS, row, strict=True)) for row in rows])


STYLE = """
:root { color-scheme: light dark; --line: #8886; --card: #8881; --warn: #b3541e; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; width: 100%; } .scroll { overflow-x: auto; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.warn { border-left: 4px solid var(--warn); padding: .4rem .8rem; background: var(--card); margin: .5rem 0; }
img { max-width: 100%; background: white; border-radius: 4px; } .bar { background: #4269d0; height: .7rem; border-radius: 2px; }
code { overflow-wrap: anywhere; } h2 { margin-top: 2rem; } small { opacity: .75; }
@media (max-width: 700px) {
  thead { display: none; } table, tbody, tr, th, td, td.n { display: block; text-align: left; white-space: normal; border: 0; }
  tr { border-bottom: 1px solid var(--line); padding: .4rem 0; } th, td { padding: .1rem 0; }
  td::before { content: attr(data-label) ": "; opacity: .75; } td:empty { display: none; }
}
@media print { body { max-width: none; } }
"""


def page(found: Probe) -> str:
    """One self-contained file. Names of models and layers are escaped."""
    e = html.escape
    measured = found.source == "measured"
    word = "measured" if measured else "<strong>ESTIMATED, NOT MEASURED</strong>"
    interval = f" &plusmn; {e(formatting.seconds(found.dense_half_width_s))}" if measured else ""
    parts = [
        f"<h1>{e(found.workload)} on {e(found.target)}</h1>",
        f"<p>What would be faster, before any accuracy work; {word}. Dense: {e(formatting.seconds(found.dense_s))}{interval} for inputs {e(', '.join('x'.join(map(str, s)) for s in found.shapes))}.</p>",
        *[f'<p class="warn" role="note">{e(warning)}</p>' for warning in found.warnings],
    ]
    if found.multiple_from:
        each = ", ".join(f"<code>{e(name)}</code>: {multiple}" for name, multiple in found.multiple_from.items())
        parts.append(f"<p>Channel multiple found on this runtime: <strong>{found.multiple}</strong> <small>({each})</small></p>")
    parts.append("<h2>Most that each pattern can give</h2>")
    rows = []
    for pattern in found.patterns:
        numbers = pattern.speedup
        shown = formatting.speedup(numbers["value"], numbers["ci_low"], numbers["ci_high"]) if numbers else "-"
        rows.append(f'<tr><th scope="row">{e(pattern.pattern)}</th><td class="n">{e(shown)}</td><td>{e(pattern.verdict)}</td><td>{e(pattern.what)}'
                    f"{'<br><small>' + e(pattern.note) + '</small>' if pattern.note else ''}</td></tr>")  # fmt: skip
    parts.append(_html_table(("pattern", "speedup", "verdict", "what was imposed"), rows, numeric=(1,)))
    for pattern in found.patterns:
        if pattern.details:
            parts.append(f"<h3>{e(pattern.pattern)}, layer by layer</h3>")
            rows = [
                f'<tr><th scope="row"><code>{e(str(d["node"]))}</code></th><td>{_yes(d["eligible"])}</td><td>{_yes(d["built"])}</td>'
                f"<td>{_yes(d['sparse'])}</td><td>{e(str(d['why_not']))}</td></tr>"
                for d in pattern.details
            ]
            parts.append(_html_table(("layer", "eligible", "built", "sparse tactic", "why not"), rows))
    parts.append("<h2>Units by their share of the time</h2>")
    rows = []
    shown_units = [unit for unit in sorted(found.units, key=lambda u: -u.share) if unit.like is None]
    for unit in shown_units:
        count = 1 + sum(other.like == unit.name for other in found.units)
        bar = f'<div class="bar" style="width:{min(100, 100 * unit.share):.1f}%"></div>'
        rows.append(f'<tr><th scope="row">{_breakable(unit.shown)}{f" (x{count})" if count > 1 else ""}</th><td>{e(unit.role)}</td>'
                    f'<td class="n">{unit.size}</td><td class="n">{e(formatting.percent(unit.share))}{bar}</td><td>{e(stairs(unit, 8))}</td></tr>')  # fmt: skip
    header = ("unit", "role", "size", "share of time", "end of a stair: predicted speedup of the model if only this is cut")
    parts.append(_html_table(header, rows, numeric=(2, 3)))
    if shown_units:
        parts.append("<h2>Staircases</h2>")
        parts.append(f'<p><img alt="Time of a unit\'s layers over the kept count, for {len(shown_units[:MOST_PICTURES])} units; the numbers are in '
                     f'probe.csv" src="data:image/png;base64,{_picture(shown_units[:MOST_PICTURES])}"></p>')  # fmt: skip
    if found.operators:
        parts.append(
            f"<h2>The runtime's own profile</h2><p>{100 * found.profile_covers:.0f} % of its time has a name of the model's.</p>"
        )
        slow = sorted(found.operators, key=lambda op: -op["seconds"])[:40]
        rows = [
            f'<tr><th scope="row"><code>{e(str(op["name"]))}</code></th><td>{e(str(op["kind"]))}</td>'
            f'<td class="n">{e(formatting.seconds(op["seconds"]))}</td><td>{e(str(op["kernel"]))}</td></tr>'
            for op in slow
        ]
        parts.append(_html_table(("operator", "kind", "time", "kernel"), rows, numeric=(2,)))
    facts = [f"<tr><th scope='row'>{e(str(k))}</th><td>{e(str(v))}</td></tr>" for k, v in found.identity.items()]
    parts.append("<h2>Measured on</h2>" if measured else "<h2>Estimated for</h2>")
    parts.append(_html_table(("what", "value"), facts))
    return document(f"hwprune probe: {found.workload} on {found.target}", f"<main>{''.join(parts)}</main>", STYLE)


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _html_table(header: tuple[str, ...], rows: list[str], numeric: tuple[int, ...] = ()) -> str:
    shown = [_labelled(row, header) for row in rows]
    cells = "".join(
        f'<th scope="col"{" class=n" if i in numeric else ""}>{html.escape(name)}</th>' for i, name in enumerate(header)
    )
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(shown)}</tbody></table></div>'


def _labelled(row: str, header: tuple[str, ...]) -> str:
    """The row with the column's name in each cell, for screens on which a row is a block."""
    names = iter(header[1:])
    return re.sub("<td", lambda _: f'<td data-label="{html.escape(next(names))}"', row)


def _breakable(name: str) -> str:
    """A name that may be broken behind its dots, and nowhere else."""
    return html.escape(name).replace(".", ".<wbr>")


def _picture(shown: list[UnitProbe]) -> str:
    """Small multiples of the staircases as a PNG in base64."""
    from matplotlib.figure import Figure

    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * lines), dpi=110, layout="constrained")
    for position, unit in enumerate(shown, 1):
        axes = figure.add_subplot(lines, columns, position)
        counts = [step.keep for step in unit.steps]
        axes.errorbar(
            counts, [1e6 * step.seconds for step in unit.steps], [1e6 * step.half_width_s for step in unit.steps],
            fmt="o-", markersize=3, linewidth=1, color="#4269d0", ecolor="#4269d080",
        )  # fmt: skip
        name = unit.shown if len(unit.shown) <= 34 else "..." + unit.shown[-31:]
        axes.set_title(name.replace("$", r"\$"), fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if position > len(shown) - columns:
            axes.set_xlabel("kept", fontsize=8)
        if position % columns == 1 or columns == 1:
            axes.set_ylabel("us", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
