"""Reading evaluation samples: batches of inputs in one npz file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def read_batches(path: str) -> Iterator[tuple[str, list[np.ndarray[Any, Any]]]]:
    """(batch number, its inputs) of an evaluation samples file."""
    with np.load(path, allow_pickle=False) as stored:
        names: dict[str, list[str]] = {}
        for name in sorted(stored.files, key=_order):
            number, _, kind = name.partition(".")
            if kind.startswith("input"):
                names.setdefault(number, []).append(name)
        for number, members in names.items():
            yield number, [stored[member] for member in members]


def example_shapes(path: Path) -> list[tuple[int, ...]]:
    """Shapes of the first batch of a samples file."""
    _, inputs = next(iter(read_batches(str(path))))
    return [array.shape for array in inputs]


def _order(name: str) -> tuple[str, int]:
    """Batches by number, inputs by position: input10 comes after input9."""
    number, _, kind = name.partition(".")
    digits = kind.removeprefix("input")
    return number, int(digits) if digits.isdigit() else -1
