"""What to do to a model, as a value: written, compared and repeated without the model at hand."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hwprune.common import html_table
from hwprune.common.files import Table
from hwprune.errors import UsageError

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class UnitChoice:
    """What happens to one unit.

    Attributes:
        unit: ``parameter:dim`` (an axis), ``parameter`` (a matrix) or a sum's node (a branch).
        pattern: ``channel``, ``head``, ``neuron``, ``unstructured``, ``2:4``, ...
        sparsity: fraction removed, in (0, 1); 1 for a dropped branch. A mask's sparsity counts the weights left after the cut.
        method: the criterion, or a method that chooses masks and weights together.
    """

    unit: str
    pattern: str
    sparsity: float
    method: str

    def __post_init__(self) -> None:
        if self.pattern == "branch":
            if self.sparsity != 1:
                raise UsageError(f"a branch is dropped as a whole: sparsity of {self.unit} must be 1, got {self.sparsity!r}")
        elif not 0 < self.sparsity < 1:
            raise UsageError(f"sparsity of {self.unit} must be in (0, 1), got {self.sparsity!r}")
        for value, what in ((self.unit, "unit"), (self.pattern, "pattern"), (self.method, "method")):
            if not value:
                raise UsageError(f"a choice without {what}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Choices for some units (all others stay dense), in canonical order, and the compensation."""

    choices: tuple[UnitChoice, ...] = ()
    compensation: str = "none"

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.choices, key=lambda choice: choice.unit))
        twice = _chosen_twice(ordered)
        if twice:
            raise UsageError(f"a recipe chooses twice for {', '.join(twice)}")
        object.__setattr__(self, "choices", ordered)

    def _repr_html_(self) -> str:
        """What a notebook shows: one line a choice."""
        rows = [[c.unit, c.pattern, f"{c.sparsity:.1%}", c.method] for c in self.choices]
        title = f"Recipe {self.digest}" if rows else "Recipe: everything stays dense"
        return html_table.table(title, ["unit", "pattern", "removed", "criterion"], rows, f"Compensation: {self.compensation}")

    @property
    def digest(self) -> str:
        """Identifies the choices and the compensation, nothing else; 16 hex digits."""
        text = json.dumps([[c.unit, c.pattern, round(c.sparsity, 9), c.method] for c in self.choices] + [self.compensation])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "compensation": self.compensation,
            "choices": [{"unit": c.unit, "pattern": c.pattern, "sparsity": c.sparsity, "method": c.method} for c in self.choices],
        }

    @classmethod
    def from_table(cls, table: Table) -> Recipe:
        """Read one; what else the file holds (fingerprints, kept indices) is not asked for here."""
        schema = table.integer("schema")
        if schema != SCHEMA:
            table.fault("schema", f"must be {SCHEMA}, got {schema}: written by another version of hwprune")
        compensation = table.text("compensation", "none")
        choices: list[UnitChoice] = []
        for row in table.tables("choices"):
            before = row.fault_count
            values = row.text("unit"), row.text("pattern"), row.number("sparsity"), row.text("method")
            row.close()
            if row.fault_count == before:
                choices += _choice(row, *values)
        twice = _chosen_twice(choices)
        if twice:
            table.fault("choices", f"a recipe chooses twice for {', '.join(twice)}")
        return cls(tuple(choice for choice in choices if choice.unit not in twice), compensation)


def _choice(row: Table, unit: str, pattern: str, sparsity: float, method: str) -> list[UnitChoice]:
    """The choice of a row; none where the row has a fault, which is told."""
    empty = [key for key, text in (("unit", unit), ("pattern", pattern), ("method", method)) if not text]
    for key in empty:
        row.fault(key, "must not be empty")
    if empty:
        return []
    try:
        return [UnitChoice(unit, pattern, sparsity, method)]
    except UsageError as error:
        row.fault("sparsity", str(error))
        return []


def _chosen_twice(choices: Sequence[UnitChoice]) -> list[str]:
    """Units that more than one choice is for."""
    counts = Counter(choice.unit for choice in choices)
    return sorted(unit for unit, count in counts.items() if count > 1)


def uniform(units: Iterable[str], pattern: str, sparsity: float, method: str, compensation: str) -> Recipe:
    """A recipe with one choice for all of ``units``."""
    return Recipe(tuple(UnitChoice(unit, pattern, sparsity, method) for unit in units), compensation)
