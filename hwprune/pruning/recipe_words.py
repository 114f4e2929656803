"""A recipe in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hwprune.layers.labels import labels
from hwprune.layers.units import Unit
from hwprune.records.recipe import UnitChoice


def described(choices: Iterable[UnitChoice], units: Mapping[str, Unit]) -> str:
    """What is done to a model, in words: ``blocks.0.conv1: channels 48 of 64; blocks.1 (residual branch) dropped``."""
    names = labels(units.values())
    words = []
    for choice in choices:
        unit, label = units[choice.unit], names[choice.unit]
        if unit.branch is not None:
            words.append(f"{label} dropped")
        elif unit.tokens is not None:
            words.append(f"{label} {1 - choice.sparsity:.0%} kept")
        elif unit.matrix is not None:
            words.append(f"{label} {choice.sparsity:.0%} zero ({choice.pattern})")
        else:
            words.append(f"{label} {unit.size - round(choice.sparsity * unit.size)} of {unit.size}")
    return "; ".join(words) or "everything stays dense"
