"""report.html of a language model's search: one file without scripts, from record.json alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from hwprune.common import formatting
from hwprune.common.files import write_atomic
from hwprune.language.language_record import LanguagePoint, file_of, limit_text, rows_of, taught_text
from hwprune.records.measurement import Measurement
from hwprune.streaming.phases import Phases
from hwprune.streaming.sublayers import ATTENTION, MLP

FILE = "report.html"
WIDTH, HEIGHT, EDGE = 520, 300, 48
BAR, ROW = 16, 44
STYLE = """
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 16px; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--line); } svg .front { fill: var(--blue); } svg .range { stroke: var(--blue); }
svg .bits { fill: none; stroke: var(--blue); stroke-width: 2; }
svg .trial { fill: var(--grey); opacity: .6; } svg .dense { fill: var(--red); }
svg .whole { fill: var(--line); } svg .kept { fill: var(--kept); }
svg .gone { fill: none; stroke: var(--red); stroke-dasharray: 3 2; }
pre { white-space: pre-wrap; background: var(--panel); padding: 10px 14px; border-radius: 6px; font-size: 13px; }
"""


WHAT = {"kv": " of the groups, with their queries", "query": " of the queries, all keys and values"}
"""What of a block's attention stays, where not both are cut."""


def write_report(record: Mapping[str, Any], path: Path) -> None:
    """Write the page of `language_record.write_record`'s record."""
    points = [LanguagePoint(**point) for point in record["front"]]
    css = resources.files("hwprune.report").joinpath("page.css").read_text(encoding="utf-8")
    name = Path(record["job"]["source"]).name
    body = [f"<h1>{escape(name)}: perplexity against measured time</h1>", _summary(record, points)]
    if points:
        body += [
            _table(points, record.get("dense_quantised", {})),
            '<div class="two">',
            _chart(points, record.get("dense_quantised", {}), "prefill"),
            _chart(points, record.get("dense_quantised", {}), "decode"),
            "</div>",
            _answers(points),
            *(f"<p>{escape(text)}</p>" for text in (limit_text(record, points), taught_text(points)) if text),
        ]
        body += ["<h2>What each block keeps</h2>", _legend(), *(_blocks(point, record) for point in points)]
        body += _continuations(points)
    body += [_trials(record), _predictions(record), _about(record)]
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(name)}</title><style>{css}{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
    write_atomic(path, page)


def _summary(record: Mapping[str, Any], points: Sequence[LanguagePoint]) -> str:
    depth, trials = record["depth"], len(record["trials"])
    asked = record["job"]["tokens"]
    text = (
        f"{escape(record['class'])}, {depth} blocks. A prompt of {asked['prompt']} tokens, then {asked['new']} one by one, "
        f"on {escape(record['job']['target'])}; {trials} models were run, {formatting.duration(record['seconds'])}"
        f"{' since it was gone on with' if record.get('resumed') else ''}."
    )
    if not points:
        return f'<p class="soft">{text}</p><p class="wrong">No model keeps the limits.</p>'
    facts = points[0].facts
    told = (
        f"Perplexity is that of {facts['windows']} windows of {facts['length']} tokens that the search never saw "
        f"(dense {facts['dense_perplexity']:.2f}). Both phases are measured in fresh processes, each against the dense model; "
        "in brackets are the extremes of these."
    )
    return f'<p class="soft">{text}</p><p>{told}</p>'


def _table(points: Sequence[LanguagePoint], dense: Mapping[str, Any]) -> str:
    names = ("trial", "weights", "perplexity", "prompt", "", "token", "", "whole answer", "parameters", "file")
    head = "".join(f"<th>{one}</th>" for one in names)
    rows = []
    for trial, precision, facts, point in rows_of(points, dense):
        phases, known = Phases.from_json(facts["phases"]), points[0].facts
        asked = phases.tokens
        size = f" ({formatting.size(facts['bytes'])})" if "bytes" in facts else ""
        cells = [
            trial, precision + size, f"{facts['perplexity']:.2f}",
            _ratio(phases.prefill_speedup), f"{asked.batch * asked.prompt / phases.prefill.value:.0f} tokens/s",
            _ratio(phases.decode_speedup), f"{asked.batch / phases.decode.value:.0f} tokens/s", f"{phases.answer_speedup:.2f}x",
            formatting.count(known["dense_params"] if point is None else point.facts["params"]),
            f"<code>{escape(file_of(trial, facts))}</code>",
        ]  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _ratio(one: Measurement) -> str:
    return escape(formatting.speedup(one.value, one.ci_low, one.ci_high))


class _Scale:
    """Numbers to pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers, about five of them."""
        raw = (self.high - self.low) / 5
        step = 10 ** math.floor(math.log10(raw))
        step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= raw)
        first = math.ceil(self.low / step)
        return [step * place for place in range(first, math.floor(self.high / step) + 1)]


def _axes(x: _Scale, y: _Scale, across: str, up: str) -> str:
    parts = []
    for tick in x.ticks():
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{EDGE / 2}" y2="{HEIGHT - EDGE}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - EDGE + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks():
        parts.append(f'<line class="grid" x1="{EDGE}" x2="{WIDTH - 10}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{EDGE - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">{across}</text>')
    parts.append(f'<text x="{EDGE}" y="14">{up}</text>')
    return "".join(parts)


def _chart(points: Sequence[LanguagePoint], dense_files: Mapping[str, Any], phase: str) -> str:
    """Perplexity against one phase's speedup, with intervals; files of fewer bits are hollow."""
    rows = rows_of(points, dense_files)
    ratios = [getattr(Phases.from_json(facts["phases"]), f"{phase}_speedup") for _, _, facts, _ in rows]
    dense = points[0].facts["dense_perplexity"]
    x = _Scale([1.0, *(one.ci_low for one in ratios), *(one.ci_high for one in ratios)], EDGE, WIDTH - 10)
    y = _Scale([dense, *(facts["perplexity"] for _, _, facts, _ in rows)], HEIGHT - EDGE, EDGE / 2)
    what = "prompt" if phase == "prefill" else "single token"
    parts = [_axes(x, y, f"speedup of a {what}, measured", "perplexity")]
    parts.append(
        f'<rect class="dense" x="{x(1) - 4:.1f}" y="{y(dense) - 4:.1f}" width="8" height="8"><title>dense</title></rect>'
    )
    for (trial, precision, facts, _), ratio in zip(rows, ratios, strict=True):
        low, high, across, up = f"{x(ratio.ci_low):.1f}", f"{x(ratio.ci_high):.1f}", x(ratio.value), y(facts["perplexity"])
        name = trial if precision == "fp32" else f"{trial}, {precision}"
        kind = "front" if precision == "fp32" else "bits"
        parts.append(f'<line class="range" x1="{low}" x2="{high}" y1="{up:.1f}" y2="{up:.1f}"/>')
        parts.append(f'<circle class="{kind}" cx="{across:.1f}" cy="{up:.1f}" r="5"><title>trial {name}</title></circle>')
        anchor = "end" if across > WIDTH - 80 else "middle"
        parts.append(f'<text x="{across:.1f}" y="{up - 9:.1f}" text-anchor="{anchor}">{name}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="perplexity against {what}">{"".join(parts)}</svg>'


def _answers(points: Sequence[LanguagePoint]) -> str:
    """Right answers to the user's questions, where there are any."""
    if not all("accuracy" in point.facts for point in points):
        return ""
    facts = points[0].facts
    rows = [("dense", facts["dense_accuracy"]), *((f"trial {point.trial}", point.facts["accuracy"]) for point in points)]
    cells = "".join(f"<tr><td>{name}</td><td>{formatting.percent(share)}</td></tr>" for name, share in rows)
    return f"<p>Right answers to {facts['questions']} questions:</p><table>{cells}</table>"


def _legend() -> str:
    return (
        '<p class="soft">Each column is a block, the first one on the left. Above: attention (groups of keys and values with '
        "their queries, or queries alone: point at a bar); below: neurons of the MLP. Blue is what stays of the grey whole; a "
        "dashed frame has gone.</p>"
    )


def _blocks(point: LanguagePoint, record: Mapping[str, Any]) -> str:
    """Two bars for each block: what stays of its attention and of its MLP."""
    parts = []
    for index, block in enumerate(point.blocks):
        for part, top in ((ATTENTION, 0), (MLP, ROW)):
            gone = block.get("layer") or block.get(part)
            cut = [name for name in (("kv", "query", "head") if part == ATTENTION else ("neuron",)) if name in block]
            share = math.prod(1.0 - block[name] for name in cut)
            left, height = 2 + index * BAR, ROW - 6
            told = f"block {index}, {part}: " + (
                "gone" if gone else f"{share:.0%}" + (WHAT.get(cut[0], "") if len(cut) == 1 else "")
            )
            if gone:
                frame = f'x="{left}" y="{top + 1}" width="{BAR - 4}" height="{height - 2}"'
                parts.append(f'<rect class="gone" {frame}><title>{told}</title></rect>')
                continue
            parts.append(f'<rect class="whole" x="{left}" y="{top}" width="{BAR - 4}" height="{height}"/>')
            filled = share * height
            parts.append(
                f'<rect class="kept" x="{left}" y="{top + height - filled:.1f}" width="{BAR - 4}" height="{filled:.1f}">'
                f"<title>{told}</title></rect>"
            )
    width, facts = max(4 + BAR * record["depth"], 2 * WIDTH), point.facts
    told = f"Trial {point.trial}: perplexity {facts['perplexity']:.2f}, {formatting.count(facts['params'])} parameters"
    return f'<p>{told}</p><svg viewBox="0 0 {width} {2 * ROW}" role="img" aria-label="{told}">{"".join(parts)}</svg>'


def _continuations(points: Sequence[LanguagePoint]) -> list[str]:
    told = [(f"Trial {point.trial}", point.facts["continuation"]) for point in points if point.facts.get("continuation")]
    if not told:
        return []
    prompt = told[0][1]["prompt"]
    found = [f"<h2>How it goes on</h2><p>Likeliest words after:</p><pre>{escape(prompt)}</pre>"]
    found.append(f"<p>Dense</p><pre>{escape(told[0][1]['dense'])}</pre>")
    return [*found, *(f"<p>{name}</p><pre>{escape(text['model'])}</pre>" for name, text in told)]


def _trials(record: Mapping[str, Any]) -> str:
    """Every model that was run: divergence against the answer's speedup."""
    run = [one for one in record["trials"] if one["values"] and one["values"][0] < 1e8]
    if not run:
        return ""
    x = _Scale([1.0, *(one["values"][1] for one in run)], EDGE, WIDTH - 10)
    y = _Scale([0.0, *(one["values"][0] for one in run)], HEIGHT - EDGE, EDGE / 2)
    front = {point["trial"] for point in record["front"]}
    parts = [_axes(x, y, "speedup of the whole answer, measured", "nats a token from dense, before any repair")]
    for one in sorted(run, key=lambda one: one["number"] in front):  # the same model may have been proposed twice
        kind = "front" if one["number"] in front else "trial"
        parts.append(
            f'<circle class="{kind}" cx="{x(one["values"][1]):.1f}" cy="{y(one["values"][0]):.1f}" r="4">'
            f"<title>trial {one['number']}</title></circle>"
        )
    return (
        "<h2>All trials</h2><p class='soft'>Each was run as a whole: its words on held-out text, its time on the runtime. Blue: "
        f'written and measured again.</p><svg viewBox="0 0 {WIDTH} {HEIGHT}" style="max-width:{WIDTH}px" role="img" '
        f'aria-label="trials">{"".join(parts)}</svg>'
    )


def _predictions(record: Mapping[str, Any]) -> str:
    """How far what was predicted of models was from what came of them."""
    rows = []
    run = [one for one in record["trials"] if "speedups" in one]
    for phase, name in (("prefill", "prompt"), ("decode", "single token")):
        rows.append((f"speedup of a {name}", [abs(one["predicted"][phase] / one["speedups"][phase][0] - 1) for one in run]))
    rows.append(("nats from dense", [abs(one["expected"] / one["values"][0] - 1) for one in run if "expected" in one]))
    told = [
        f"{name}: median {sorted(errors)[len(errors) // 2]:.1%}, largest {max(errors):.1%} of {len(errors)} models"
        for name, errors in rows if errors
    ]  # fmt: skip
    return f"<p class='soft'>Predicted against measured: {'; '.join(told)}.</p>" if told else ""


def _about(record: Mapping[str, Any]) -> str:
    refused = "".join(f"<li>{escape(reason)}</li>" for reason in record["refused"])
    versions = ", ".join(f"{escape(name)} {escape(text)}" for name, text in record.get("versions", {}).items())
    return (
        f"<h2>Not searched</h2><ul>{refused}</ul>" if refused else ""
    ) + f"<h2>How</h2><pre>{escape(json.dumps(record['job'], indent=1))}</pre><p class='soft'>{versions}</p>"
