"""Compensation: repair what was kept. One file each, one table; a recipe names one or several, joined by ``+``.

Begin with `base`; `sequential` is the most thorough one.
"""

from __future__ import annotations

from hwprune.compensation.base import Batches, Compensation, Context
from hwprune.compensation.batchnorm import BatchNorm
from hwprune.compensation.local import Local
from hwprune.compensation.sequential import Sequential, Statistics
from hwprune.errors import UnknownNameError, UsageError

NONE = "none"
SEQUENTIAL = Sequential.name

COMPENSATIONS: dict[str, Compensation] = {
    compensation.name: compensation
    for compensation in (
        Local("obs", "each layer's kept weights make up for those removed (optimal brain surgeon)"),
        Local("lstsq", "the same by exact least squares, for masks too (slow on large layers)"),
        Sequential(),
        Statistics("bias", scale=False),
        Statistics("meanvar", scale=True),
        BatchNorm(),
    )
}
"""All compensations by name, in the order in which they are applied."""


def parse(text: str) -> list[Compensation]:
    """``obs+batchnorm`` -> its compensations, in the order of the table; ``none`` is empty.

    Raises:
        UnknownNameError: one of the names.
        UsageError: two that exclude each other.
    """
    names = [] if text == NONE else text.split("+")
    for name in names:
        if name not in COMPENSATIONS:
            raise UnknownNameError("compensation", name, [NONE, *COMPENSATIONS], "Several are joined by +.")
    if sum(COMPENSATIONS[name].local for name in names) > 1:
        raise UsageError(f"compensation {text}: obs and lstsq exclude each other")
    return [compensation for name, compensation in COMPENSATIONS.items() if name in names]


def canonical(text: str) -> str:
    """The name of the same compensations in the order of the table."""
    return "+".join(compensation.name for compensation in parse(text)) or NONE


def local_part(text: str) -> str:
    """The part of a compensation that belongs to the options of layers; `NONE` where there is none."""
    return next((compensation.name for compensation in parse(text) if compensation.local), NONE)


def is_sequential(text: str) -> bool:
    """Does a recipe's compensation run the candidate on the calibration data, layer after layer?"""
    return SEQUENTIAL in text.split("+")


__all__ = [
    "COMPENSATIONS", "NONE", "SEQUENTIAL", "BatchNorm", "Batches", "Compensation", "Context", "canonical", "is_sequential",
    "local_part", "parse",
]  # fmt: skip
