"""What a search of a language model leaves: record.json, front.csv, and a text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwprune.common import formatting
from hwprune.common.files import dump_json, write_atomic
from hwprune.language.part_choices import PartChoices
from hwprune.searching.recording import versions
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.phases import Phases

if TYPE_CHECKING:
    from hwprune.language.phase_prices import Prices
    from hwprune.language.phase_study import PhaseStudy

RECORD, FRONT = "record.json", "front.csv"
COLUMNS = (
    "trial", "precision", "perplexity", "dense_perplexity", "prefill_s", "prefill_speedup", "prefill_ci_low", "prefill_ci_high",
    "decode_s", "decode_speedup", "decode_ci_low", "decode_ci_high", "answer_s", "answer_speedup", "params",
    "cache_bytes_per_token", "model", "folder", "right_answers", "dense_right_answers",
    "untaught_perplexity",
)  # fmt: skip
Row = tuple[str, str, Mapping[str, Any], "LanguagePoint | None"]
"""Trial, precision, facts with ``perplexity`` and ``phases``, and its point."""


@dataclass(frozen=True, slots=True)
class LanguagePoint:
    """A point of the front.

    Attributes:
        trial: its number.
        blocks: see `part_choices.by_block`.
        facts: see `road.prune_folder`.
        unrepaired: divergence and perplexity of the trial, on held-out windows of the calibration text.
    """

    trial: int
    blocks: Sequence[Mapping[str, float]]
    facts: Mapping[str, Any]
    unrepaired: Mapping[str, float]

    @property
    def phases(self) -> Phases:
        """Both phases, in fresh processes."""
        return Phases.from_json(self.facts["phases"])


def write_record(
    out: Path,
    job: Mapping[str, Any],
    quantised: Mapping[str, Any],
    folder: LanguageFolder,
    choices: PartChoices,
    prices: Prices,
    study: PhaseStudy,
    points: Sequence[LanguagePoint],
    seconds: float,
    *,
    resumed: bool,
) -> dict[str, Any]:
    """Write both files; returns what is in the record.

    Args:
        quantised: precision -> `quantised_facts` of the dense model.
        seconds: of this session; ``resumed``: it was not the only one.
    """
    estimates = study.estimates()
    trials = [
        {
            "number": one.number,
            "estimated": estimates.get(one.number),
            "state": one.state.name,
            "values": one.values,
            "params": one.params,
            **one.user_attrs,
        }
        for one in study.finished()
    ]
    record: dict[str, Any] = {
        "schema": 1, "kind": "language", "job": dict(job), "class": folder.kind.__name__, "depth": folder.depth,
        "choices": [asdict(one) for one in (*choices.attention, *choices.mlp)], "refused": list(choices.refused),
        "prices": {"dense": dict(prices.dense), "saved": {k: dict(v) for k, v in prices.saved.items()}},
        "versions": versions(), "trials": trials, "front": [asdict(point) for point in points],
        "dense_quantised": dict(quantised), "seconds": seconds, "resumed": resumed,
    }  # fmt: skip
    write_atomic(out / RECORD, dump_json(record))
    write_atomic(out / FRONT, front_csv(points, quantised))
    return record


def rows_of(points: Sequence[LanguagePoint], dense: Mapping[str, Any]) -> list[Row]:
    """Everything that was measured, the dense model's files first.

    Args:
        dense: precision -> `quantised_facts` of the dense model.
    """
    rows: list[Row] = []
    rows += [("dense", name, facts, None) for name, facts in dense.items()]
    for point in points:
        rows.append((str(point.trial), "fp32", point.facts, point))
        rows += [(str(point.trial), name, facts, point) for name, facts in point.facts.get("quantised", {}).items()]
    return rows


def file_of(trial: str, facts: Mapping[str, Any]) -> str:
    """The file of a row that was measured, relative to the run directory."""
    return f"candidates/{trial}/" + (facts.get("openvino") or facts.get("program") or f"onnx/{facts.get('file', 'model.onnx')}")


def front_csv(points: Sequence[LanguagePoint], dense: Mapping[str, Any]) -> str:
    """A row for each point in each precision, slowest first.

    Args:
        dense: precision -> `quantised_facts` of the dense model.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for trial, precision, facts, point in rows_of(points, dense):
        phases = Phases.from_json(facts["phases"])
        both = [
            (one.value, ratio.value, ratio.ci_low, ratio.ci_high)
            for one, ratio in ((phases.prefill, phases.prefill_speedup), (phases.decode, phases.decode_speedup))
        ]
        known = points[0].facts if points else {}
        params, cache = known.get("dense_params", ""), known.get("dense_cache_bytes_per_token", "")
        if point is not None:
            params, cache = point.facts["params"], point.facts["cache_bytes_per_token"]
        place = "" if point is None else f"candidates/{trial}"
        table.writerow([
            trial, precision, facts["perplexity"], known.get("dense_perplexity", ""), *both[0], *both[1], phases.answer_s,
            phases.answer_speedup, params, cache, file_of(trial, facts), place,
            "" if point is None or precision != "fp32" else facts.get("accuracy", ""), known.get("dense_accuracy", ""),
            "" if point is None or precision != "fp32" else facts.get("untaught_perplexity", ""),
        ])  # fmt: skip
    return text.getvalue()


def told(record: Mapping[str, Any]) -> str:
    """The front as a table for a terminal."""
    points = [LanguagePoint(**point) for point in record["front"]]
    first = points[0]
    asked = first.phases.tokens
    lines = [
        f"Dense: perplexity {first.facts['dense_perplexity']:.2f}, {formatting.count(first.facts['dense_params'])} parameters. "
        f"Prompt of {asked.prompt} tokens, then {asked.new} one by one.",
        "",
        f"{'trial':>5}  {'type':>4}  {'perplexity':>10}  {'prompt':>20}  {'token':>20}  {'answer':>7}  {'parameters':>10}",
    ]
    for trial, precision, facts, point in rows_of(points, record.get("dense_quantised", {})):
        phases = Phases.from_json(facts["phases"])
        both = [formatting.speedup(one.value, one.ci_low, one.ci_high) for one in (phases.prefill_speedup, phases.decode_speedup)]
        params = first.facts["dense_params"] if point is None else point.facts["params"]
        lines.append(
            f"{trial:>5}  {precision:>4}  {facts['perplexity']:>10.2f}  {both[0]:>20}  {both[1]:>20}  "
            f"{phases.answer_speedup:>6.2f}x  {formatting.count(params):>10}"
        )
    if any("accuracy" in point.facts for point in points):
        shares = ", ".join(f"trial {point.trial} {formatting.percent(point.facts['accuracy'])}" for point in points)
        count, dense = first.facts["questions"], formatting.percent(first.facts["dense_accuracy"])
        lines += ["", f"Right answers to {count} questions: dense {dense}, {shares}."]
    for text in (limit_text(record, points), taught_text(points), plain_text(record)):
        lines += ["", text] if text else []
    return "\n".join(lines)


def plain_text(record: Mapping[str, Any]) -> str:
    """That nothing but plain models was run, where that is so."""
    trials = record.get("trials")
    if not trials or not all("fixed" in one for one in trials):  # `phase_study.FIXED`
        return ""
    return (
        "All models have the same share of neurons in all blocks, which is where a search begins: with --resume and more "
        "--trials each block gets its own size."
    )


def limit_text(record: Mapping[str, Any], points: Sequence[LanguagePoint]) -> str:
    """How the fastest point stands to ``--max-drop``; nothing where there is no limit."""
    allowed = record["job"].get("max_drop")
    if allowed is None or not points:
        return ""
    fastest = max(points, key=lambda point: point.phases.answer_speedup)
    dense, found = (fastest.facts[name] for name in ("dense_perplexity", "perplexity"))
    relative = record["job"].get("relative")
    rise = (found - dense) / (dense if relative else 1.0)
    words = [formatting.percent(x) if relative else f"{x:.2f}" for x in (rise, allowed)]
    text = f"--max-drop {words[1]}: trial {fastest.trial} is the fastest model that was found; its perplexity is {words[0]} "
    if rise <= allowed:
        return f"{text}above the dense one's."
    return f"{text}above the dense one's, more than allowed: the text that trials are held against said it was within."


def taught_text(points: Sequence[LanguagePoint]) -> str:
    """What a distillation has brought; nothing where there was none."""
    taught = [point for point in points if "untaught_perplexity" in point.facts]
    if not taught:
        return ""
    changes = [
        f"trial {point.trial} {point.facts['untaught_perplexity']:.2f} -> {point.facts['perplexity']:.2f}" for point in taught
    ]
    learned = [point.facts["distilled"] for point in taught]
    spent = formatting.duration(sum(one["seconds"] + one["teacher_seconds"] for one in learned))
    return (
        f"Taught by the dense model, from {formatting.count(learned[0]['tokens'])} tokens each ({spent} in all); perplexity "
        f"before and after: {', '.join(changes)}."
    )
