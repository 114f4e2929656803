"""The allocation problem: items, their choices, limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One option of an item.

    Attributes:
        parameters: Optuna parameters that say it.
        error: divergence that it alone is expected to cause, >= 0 in any common scale; 0 for the dense option.
        saved: share of the dense model's time that it saves; negative if it is slower.
        saves: of other resources that add up: bytes of the file, bytes in memory while a certain layer runs, ...
        response: (examples,) signed responses whose mean square over two is ``error``, for interactions; or None.
        levels: (unit, level) that it stands for, for couplings.
    """

    parameters: Mapping[str, Any]
    error: float
    saved: float
    saves: Mapping[str, float] = field(default_factory=dict)
    response: Array | None = None
    levels: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if not (np.isfinite([self.error, self.saved, *self.saves.values()]).all() and self.error >= 0):
            raise ValueError(
                f"an option needs a finite error >= 0 and finite savings, got {self.error}, {self.saved}, {dict(self.saves)}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """Things that are decided on together: exactly one choice is taken. The first choice is the dense one."""

    name: str
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError(f"item {self.name} has no choice")
        names = set(self.choices[0].parameters)
        if any(set(choice.parameters) != names for choice in self.choices):
            raise ValueError(f"every choice of item {self.name} must set the same parameters: {', '.join(sorted(names))}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a candidate must keep to be of use; None: no limit.

    Attributes:
        max_drop: of the first objective.
        max_ratio: of the latency as a share of dense.
        min_saved: of each resource that `Choice.saves` names. A limit on something that is the largest of several sums (memory at
            its peak) is a limit on each of them.
        reference_drop: the worst drop that still counts where there is no ``max_drop``.
    """

    max_drop: float | None = None
    max_ratio: float | None = None
    min_saved: Mapping[str, float] = field(default_factory=dict)
    reference_drop: float = 0.1

    @property
    def reference(self) -> tuple[float, float]:
        """Worst corner of the hypervolume. A little beyond the limit on the drop: validation decides it only roughly."""
        drop = self.reference_drop if self.max_drop is None else 1.25 * self.max_drop + 0.002
        return drop, 1.0 if self.max_ratio is None else min(1.0, 1.02 * self.max_ratio)


def response_gram(items: Sequence[Item]) -> Array | None:
    """(all options, all options): inner products of responses over 2; None if too many, or an item has none."""
    choices = [choice for item in items for choice in item.choices]
    if len(choices) > 4000 or not any(choice.response is not None for choice in choices):
        return None
    count = max(len(c.response) for c in choices if c.response is not None)
    rows = np.stack([np.zeros(count) if c.response is None else c.response for c in choices])
    found: Array = rows @ rows.T / (2 * count)
    # What has an error but no response stands alone.
    alone = np.array([c.error if c.response is None else 0.0 for c in choices])
    found[np.diag_indices_from(found)] += alone
    return found


def item_couplings(items: Sequence[Item], coupled: Mapping[tuple[str, str], Array]) -> dict[tuple[int, int], Array]:
    """Couplings between units as couplings between items (or, inside one item, left to its choices' own savings)."""
    where = {unit: place for place, item in enumerate(items) for choice in item.choices for unit, _ in choice.levels}
    found: dict[tuple[int, int], Array] = {}
    for (one, other), given in coupled.items():
        if where.get(one, 0) == where.get(other, 0) or one not in where or other not in where:
            continue
        turned = where[one] > where[other]
        a, b, table = (other, one, given.T) if turned else (one, other, given)
        u, v = where[a], where[b]
        own = found.setdefault((u, v), np.zeros((len(items[u].choices), len(items[v].choices))))
        for i, first in enumerate(items[u].choices):
            for j, second in enumerate(items[v].choices):
                level_a, level_b = dict(first.levels).get(a, 0), dict(second.levels).get(b, 0)
                own[i, j] += table[level_a, level_b]
    return found
