"""Names of prune units for people: ``blocks.1 (residual branch)`` and not ``add_1``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hwprune.layers.units import Unit

NOUNS = {
    "channel": "channels", "neuron": "neurons", "head": "heads", "head_dim": "size of the heads", "hidden": "hidden width",
    "state": "states",
}  # fmt: skip
"""Role of an axis -> what is counted."""


def labels(units: Iterable[Unit]) -> dict[str, str]:
    """Unit -> its label; each label once."""
    found = {unit.name: _label(unit) for unit in units}
    counts = Counter(found.values())
    return {
        name: f"{label} ({name.partition(':')[2]})" if counts[label] > 1 and ":" in name else label
        for name, label in found.items()
    }


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
    layer = unit.name.partition(":")[0].removesuffix(".weight")
    return f"{layer}: {'weights' if unit.matrix is not None else NOUNS.get(unit.role, unit.role)}"
