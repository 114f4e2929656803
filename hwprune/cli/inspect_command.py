"""hwprune inspect."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hwprune.cli import arguments as args

if TYPE_CHECKING:
    from hwprune.pruning.pruner import Pruner


def arguments(parser: argparse.ArgumentParser) -> None:
    args.add_workload(parser)
    parser.add_argument("--all", action="store_true", help="one line for each axis and branch, also where blocks repeat")
    parser.add_argument("--members", action="store_true", help="list every parameter that an axis runs through")
    args.add_output(parser)


def run(options: argparse.Namespace) -> int:
    from hwprune.pruning.pruner import Pruner
    from hwprune.workload import loading

    workload = loading.load(args.source(options), structure_only=True)
    data = describe(Pruner(workload))
    if options.json:
        print(json.dumps({"workload": workload.name, **data}, indent=1))
    else:
        print(text(workload.name, data, members=options.members, every=options.all))
    return 0


def describe(pruner: Pruner) -> dict[str, Any]:
    """Axes, matrices and branches as JSON values."""
    from hwprune.layers.units import ties

    graph = pruner.graph
    alike = ties(pruner.units)
    parameters = dict(graph.module.named_parameters(remove_duplicate=False))
    total = sum(p.numel() for p in graph.module.parameters())
    return {
        "parameters": total,
        "untraceable": pruner.untraceable,
        "axes": [
            {
                "name": axis.name,
                "role": axis.role,
                "size": axis.size,
                "exact": axis.exact,
                "inexact_reason": axis.inexact_reason,
                "frozen": axis.frozen,
                "like": alike.get(axis.name),
                "members": [list(member) for member in axis.members],
            }
            for axis in graph.axes
        ],
        "matrices": [
            {"name": m.parameter, "kind": m.kind, "shape": list(m.shape), "groups": m.groups, "transposed": m.transposed}
            for m in graph.matrices
        ],
        "branches": [
            {
                "name": branch.name,
                "parameters": sum(parameters[name].numel() for name in branch.parameters if name in parameters),
                "members": list(branch.parameters),
                "like": alike.get(branch.name),
            }
            for branch in graph.branches
        ],
    }


def text(name: str, data: Mapping[str, Any], *, members: bool, every: bool) -> str:
    """The same for people: what can be cut, then what can't and why."""
    from hwprune.layers.labels import common_module
    from hwprune.report.text import table

    free = [axis for axis in data["axes"] if axis["frozen"] is None]
    frozen = [axis for axis in data["axes"] if axis["frozen"] is not None]
    head = f"{name}: {len(free)} axes can be cut, {len(frozen)} can't; {len(data['branches'])} branches can be dropped; "
    parts = [head + f"{len(data['matrices'])} matrices take mask patterns."]
    if data["untraceable"]:
        parts.append(f"No axes, because {data['untraceable']}")
    if free:
        rows = [
            [
                group[0]["name"],
                str(len(group)),
                group[0]["role"],
                str(group[0]["size"]),
                "exact" if group[0]["exact"] else "statistical",
                str(len(group[0]["members"])),
            ]
            for group in _grouped(free, every=every)
        ]
        parts.append(table(["axis", "alike", "role", "size", "cut", "members"], rows, 10_000))
        if any(not axis["exact"] for axis in free):
            parts.append("statistical: a mean, norm or softmax runs over the axis, so that cutting it differs from masking it.")
    if members:
        parts += [a["name"] + ": " + ", ".join(f"{p}:{d}" for p, d in a["members"]) for a in free]
    if data["branches"]:
        rows = [
            [
                group[0]["name"],
                str(len(group)),
                f"{group[0]['parameters'] / data['parameters']:.1%}",
                common_module(group[0]["members"]),
            ]
            for group in _grouped(data["branches"], every=every)
        ]
        parts.append(table(["branch", "alike", "parameters", "is"], rows, 10_000))
    if frozen:
        parts.append("Left alone:\n" + args.lines(_reasons(frozen, every=every)))
    return "\n\n".join(parts)


def _grouped(items: Sequence[dict[str, Any]], *, every: bool) -> list[list[dict[str, Any]]]:
    """Items that look alike together, in the order of the first of each."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(item["name"] if every else item["like"] or item["name"], []).append(item)
    return list(groups.values())


def _reasons(frozen: Sequence[dict[str, Any]], *, every: bool) -> list[tuple[str, str]]:
    """(axis, reason), equal reasons (up to the operator's number) in one line."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for axis in frozen:
        reason = axis["frozen"]
        groups.setdefault(axis["name"] if every else reason.rpartition(": ")[2], []).append(axis)
    lines = []
    for group in groups.values():
        first = group[0]
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        lines.append((f"  {first['name']} ({first['size']}){more}", first["frozen"]))
    return lines
