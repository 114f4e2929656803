"""The front as Markdown: for a pull request, a ticket, a wiki."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hwprune.common import formatting
from hwprune.records.record import MEASURED, Record
from hwprune.report.details import precision_rows
from hwprune.report.text import number, points_text, recommended, speedup_text, trained, verdict


def markdown(record: Record) -> str:
    """The verdict, the front, quantised references, notes, and where the numbers come from."""
    base, dense, metric = record.data["baseline"], record.dense_metric, record.data["workload"]["metric"]
    best_place = recommended(record)
    rows = [
        [
            "dense",
            "1.00x",
            "",
            number(dense["value"]),
            formatting.seconds(base["latency"]["value"]),
            formatting.size(base["size_bytes"]),
        ]
    ]
    for place, point in enumerate(record.data["front"]):
        name = f"trial {point['trial']}{trained(record, point['trial'])}"
        rows.append(
            [
                f"**{plain(name)}**" if place == best_place else name, speedup_text(point["speedup"]), points_text(record, point),
                number(point["metric"]["value"]), formatting.seconds(point["latency"]["value"]),
                formatting.size(point["size_bytes"]),
            ]
        )  # fmt: skip
    parts = [f"### {plain(record.data['workload']['name'])} on {plain(record.target_label)}", plain(verdict(record))]
    parts.append(table(["", "speedup", "drop", metric, "latency", "file"], rows))
    if precision := precision_rows(record):
        parts.append(table(["quantised", "precision", "made of", "speedup", "drop", "file", "layers"], precision))
    parts.append("\n".join(f"* {plain(note)}" for note in record.data["notes"]))
    identity, versions = record.data["fingerprint"]["identity"], record.data["versions"]
    how = {"table": "PREDICTED from a table", "estimated": "ESTIMATED from a data sheet"}.get(record.latency_source, "measured")
    device = f" on {identity['device']}, {identity.get('threads')} thread(s)" if "device" in identity else ""
    runtime = identity.get("runtime", record.data["target"]["runtime"])
    parts.append(
        plain(f"Latency {how}{device}, {runtime}; hwprune {versions['hwprune']}, seed {record.data['job']['seed']}; speedups")
        + (" with the interval over fresh processes." if record.latency_source == MEASURED else " are no measurements.")
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells that are no Markdown of ours are escaped."""
    lines = [[plain(cell) for cell in header], ["---"] * len(header)]
    lines += [[cell if cell.startswith("**") else plain(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text that Markdown, and the HTML in it, shows as it is: names of models and layers are not ours."""
    text = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}<>|#~@!]|\](?=[(\[:]))", r"\\\1", text)  # brackets alone are intervals; before these they are links
