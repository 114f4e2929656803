"""Names of prune units for people: ``blocks.1 (residual branch)`` and not ``add_1``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hwprune.layers.units import Unit

NOUNS = {
    "channel": "channels", "neuron": "neurons", "head": "heads", "head_dim": "size of the heads", "hidden": "hidden width",
    "state": "states", "token": "tokens", "merge": "tokens, merged",
}  # fmt: skip
"""Role of an axis -> what is counted."""


def labels(units: Iterable[Unit]) -> dict[str, str]:
    """Unit -> its label; each label once."""
    table = {unit.name: unit for unit in units}
    found = {name: _label(unit) for name, unit in table.items()}
    counts = Counter(found.values())
    return {name: label if counts[label] == 1 else _longer(table[name], label) for name, label in found.items()}


def _longer(unit: Unit, label: str) -> str:
    """The label with what tells it from others: the modules in a branch, or the part of a dim."""
    if unit.tokens is not None:
        return f"{label} ({unit.name.partition(':')[0]})"
    if unit.branch is None:
        return f"{label} ({unit.name.partition(':')[2]})"
    inside = common_module(list(unit.weights))
    parts = list(dict.fromkeys(name.removeprefix(f"{inside}.").partition(".")[0] for name in unit.weights))
    return f"{inside} (residual branch of {', '.join(parts)})"


def common_module(parameters: Sequence[str]) -> str:
    """The module that all parameters lie in; where there is none, the first and the last parameter."""
    common = []
    for parts in zip(*(name.split(".") for name in parameters), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) or f"{parameters[0]} ... {parameters[-1]}"


def _label(unit: Unit) -> str:
    if unit.branch is not None:
        return f"{common_module(list(unit.weights))} (residual branch)" if unit.weights else f"{unit.name} (residual branch)"
    if unit.tokens is not None:
        return f"after {unit.tokens.label}: {NOUNS[unit.role]}"
    layer = unit.name.partition(":")[0].removesuffix(".weight")
    return f"{layer}: {'weights' if unit.matrix is not None else NOUNS.get(unit.role, unit.role)}"
