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


def batch_order(number: str) -> tuple[int, str]:
    """The sort key of a batch's number: names hold five digits, more from the 100,000th batch on, and so don't sort as text."""
    return int(number) if number.isdecimal() else -1, number


def _order(name: str) -> tuple[tuple[int, str], int]:
    """The sort key of an array: batches by number, inputs by position, so that input10 comes after input9."""
    number, _, kind = name.partition(".")
    digits = kind.removeprefix("input")
    return batch_order(number), int(digits) if digits.isdecimal() else -1
