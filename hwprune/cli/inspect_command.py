"""hwprune inspect."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from hwprune.cli import arguments as args

if TYPE_CHECKING:
    from hwprune.structure.graph import AxisGraph


def arguments(parser: argparse.ArgumentParser) -> None:
    args.add_workload(parser)
    parser.add_argument("--members", action="store_true", help="list every parameter that an axis runs through")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    from hwprune import sources
    from hwprune.structure.tracing import trace

    workload = sources.load(args.source(options), structure_only=True)
    graph = trace(workload.model, workload.example_inputs)
    data = describe(graph)
    if options.json:
        print(json.dumps({"workload": workload.name, **data}, indent=1))
    else:
        print(text(workload.name, data, options.members))
    return 0


def describe(graph: AxisGraph) -> dict[str, Any]:
    """Axes and matrices as JSON values."""
    return {
        "axes": [
            {
                "name": axis.name,
                "role": axis.role,
                "size": axis.size,
                "exact": axis.exact,
                "inexact_reason": axis.inexact_reason,
                "frozen": axis.frozen,
                "members": [list(member) for member in axis.members],
            }
            for axis in graph.axes
        ],
        "matrices": [{"name": m.parameter, "kind": m.kind, "shape": list(m.shape), "groups": m.groups} for m in graph.matrices],
    }


def text(name: str, data: dict[str, Any], members: bool) -> str:
    """For people: what can be cut, then what can't and why."""
    from hwprune.report.text import table

    free = [axis for axis in data["axes"] if axis["frozen"] is None]
    frozen = [axis for axis in data["axes"] if axis["frozen"] is not None]
    parts = [f"{name}: {len(free)} axes can be cut, {len(frozen)} can't; {len(data['matrices'])} matrices take mask patterns."]
    if free:
        rows = [
            [a["name"], a["role"], str(a["size"]), "exact" if a["exact"] else "statistical", str(len(a["members"]))] for a in free
        ]
        parts.append(table(["axis", "role", "size", "cut", "members"], rows, 10_000))
    if members:
        parts += [a["name"] + ": " + ", ".join(f"{p}:{d}" for p, d in a["members"]) for a in free]
    if frozen:
        parts.append("Left alone:\n" + args.lines((f"  {a['name']} ({a['size']})", a["frozen"]) for a in frozen))
    return "\n\n".join(parts)
