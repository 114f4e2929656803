"""The runtime's own profile of the fused network, told by segments of the graph as it was written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hwprune.latency.segments import Segment

COVERS = 0.7
"""Share of the profile's time that must find a name, or the shares come from the pieces' own times."""


def attribute(
    operators: Sequence[Mapping[str, Any]], segments: Sequence[Segment]
) -> tuple[list[dict[str, Any]], float, dict[str, float]]:
    """(operators with their segment, share of the time that was found by name, share of the time by segment).

    Runtimes name fused kernels after a node or after its output, with an ending of their own. What has a name of the runtime's
    invention (a reorder of the layout) belongs to the operator before it.
    """
    names = sorted(
        {
            name: segment.name for segment in segments for node in segment.nodes for name in (node.name, *node.output) if name
        }.items(),
        key=lambda pair: -len(pair[0]),
    )
    total = sum(op["seconds"] for op in operators)
    rows: list[dict[str, Any]] = []
    named = 0.0
    before = segments[0].name if segments else ""
    for op in operators:
        hit = _look_up(str(op["name"]), names)
        named += op["seconds"] if hit else 0.0
        before = hit or before
        rows.append({**op, "segment": before})
    if not total or named < COVERS * total:
        return rows, named / total if total else 0.0, {}
    shares: dict[str, float] = {}
    for row in rows:
        shares[row["segment"]] = shares.get(row["segment"], 0.0) + row["seconds"] / total
    return rows, named / total, shares


def _look_up(name: str, names: Sequence[tuple[str, str]]) -> str | None:
    """The segment of the longest node or tensor name that occurs as a whole word."""
    for text, segment in names:
        if text in name and re.search(rf"(?<![A-Za-z0-9]){re.escape(text)}(?![A-Za-z0-9])", name):
            return segment
    return None
