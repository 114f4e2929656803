"""What can be pruned in a model, and for what cannot, why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwprune.common import html_table
from hwprune.layers.labels import common_module
from hwprune.layers.units import ties
from hwprune.pruning.pruner import Pruner
from hwprune.report.text import table

if TYPE_CHECKING:
    import pandas

    from hwprune.workload.workload import Workload

HEADER = ("axis", "alike", "role", "size", "cut", "members")


@dataclass(frozen=True, slots=True, repr=False)
class Inspection:
    """What can be pruned in a model; shown as a table in a notebook, and as text by ``print``.

    Attributes:
        name: of the workload.
        data: ``axes``, ``matrices``, ``branches`` and ``tokens`` as JSON values; ``parameters``; ``untraceable``: why only masks
            are left.
    """

    name: str
    data: Mapping[str, Any]

    def __str__(self) -> str:
        return text(self.name, self.data, members=False, every=False)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """What a notebook shows: the axes that can be cut, those alike in one row; what is left alone in the note."""
        free = [axis for axis in self.data["axes"] if axis["frozen"] is None]
        frozen = [axis for axis in self.data["axes"] if axis["frozen"] is not None]
        left = "; ".join(f"{axis.strip()}: {reason}" for axis, reason in _reasons(frozen, every=False))
        return html_table.table(
            _head(self.name, self.data), HEADER, _axis_rows(free, every=False), left and f"Left alone: {left}"
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """One row an axis: name, role, size, exact, frozen (the reason, or None), like, members."""
        import pandas

        return pandas.DataFrame(self.data["axes"])


def inspect(workload: Workload) -> Inspection:
    """Find out what can be pruned: axes with their roles, residual branches, matrices for mask patterns.

        >>> found = hwprune.inspect(WORKLOAD)
        >>> "can be cut" in str(found)
        True

    Args:
        workload: its model is traced on its example inputs; no data are read.

    Raises:
        TraceError: the model can't be traced, and it has no linear or convolution layer either.
    """
    return Inspection(workload.name, describe(Pruner(workload)))


def describe(pruner: Pruner) -> dict[str, Any]:
    """Axes, matrices and branches as JSON values."""
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
            if m.parameter in pruner.units
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
        "tokens": [
            {"name": axis.name, "form": axis.form, "size": axis.size, "after": axis.label, "like": alike.get(axis.name)}
            for axis in graph.token_axes
        ],
        "tokens_reason": graph.token_reason,
    }


def text(name: str, data: Mapping[str, Any], *, members: bool, every: bool) -> str:
    """Axes, matrices and branches as text: what can be cut, then what can't and why."""
    free = [axis for axis in data["axes"] if axis["frozen"] is None]
    frozen = [axis for axis in data["axes"] if axis["frozen"] is not None]
    parts = [_head(name, data)]
    if data["untraceable"]:
        parts.append(f"No axes, because {data['untraceable']}")
    if free:
        parts.append(table(HEADER, _axis_rows(free, every=every), 10_000))
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
    if data["tokens"]:
        rows = [
            [group[0]["name"], str(len(group)), str(group[0]["size"]), group[0]["after"]]
            for group in _grouped(data["tokens"], every=every)
        ]
        parts.append(table(["tokens", "alike", "may go", "after"], rows, 10_000))
    if frozen:
        reasons = _reasons(frozen, every=every)
        wide = max(len(name) for name, _ in reasons)
        parts.append("Left alone:\n" + "\n".join(f"{name.ljust(wide)}  {reason}".rstrip() for name, reason in reasons))
    return "\n\n".join(parts)


def _head(name: str, data: Mapping[str, Any]) -> str:
    free = sum(axis["frozen"] is None for axis in data["axes"])
    return (
        f"{name}: {free} axes can be cut, {len(data['axes']) - free} can't; {len(data['branches'])} branches can be dropped; "
        f"{len(data['matrices'])} matrices take mask patterns."
    )


def _axis_rows(free: Sequence[dict[str, Any]], *, every: bool) -> list[list[str]]:
    return [
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
