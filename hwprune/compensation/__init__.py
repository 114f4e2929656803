"""Compensation: repair what was kept. One file each, one table."""

from __future__ import annotations

from hwprune.compensation.base import Batches, Compensation
from hwprune.compensation.batchnorm import BatchNorm
from hwprune.errors import UnknownNameError

COMPENSATIONS: dict[str, Compensation] = {"batchnorm": BatchNorm()}

NONE = "none"


def get(name: str) -> Compensation:
    """The compensation of that name (not for ``none``). Raises `UnknownNameError`."""
    if name not in COMPENSATIONS:
        raise UnknownNameError("compensation", name, [NONE, *COMPENSATIONS])
    return COMPENSATIONS[name]


__all__ = ["COMPENSATIONS", "NONE", "BatchNorm", "Batches", "Compensation", "get"]
