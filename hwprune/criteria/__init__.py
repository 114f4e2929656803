"""Criteria: weights and statistics -> scores. One file each, one table."""

from __future__ import annotations

from hwprune.criteria.base import Criterion, Statistics
from hwprune.criteria.magnitude import L1, L2
from hwprune.criteria.random import Random
from hwprune.errors import UnknownNameError

CRITERIA: dict[str, Criterion] = {criterion.name: criterion for criterion in (L1(), L2(), Random())}


def get(name: str) -> Criterion:
    """The criterion of that name. Raises `UnknownNameError`."""
    if name not in CRITERIA:
        raise UnknownNameError("criterion", name, CRITERIA)
    return CRITERIA[name]


__all__ = ["CRITERIA", "L1", "L2", "Criterion", "Random", "Statistics", "get"]
