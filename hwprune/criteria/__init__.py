"""Criteria: weights and statistics -> scores. One file a family, one table.

Begin with `base`; a new criterion is one file and one row in the table below.
"""

from __future__ import annotations

from hwprune.common import plugins
from hwprune.criteria.activation import Activation, Apoz, Flap
from hwprune.criteria.base import Criterion
from hwprune.criteria.curvature import Obs, SparseGPT
from hwprune.criteria.fpgm import Fpgm
from hwprune.criteria.gradient import Gradient, Obd, Taylor
from hwprune.criteria.inputs import Ria, Wanda
from hwprune.criteria.lamp import Lamp
from hwprune.criteria.magnitude import L1, L2
from hwprune.criteria.random import Random
from hwprune.criteria.slimming import Slimming
from hwprune.errors import UnknownNameError

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        L1(), L2(), Random(), Lamp(), Gradient(), Taylor(), Obd(), Obs(), SparseGPT(), Wanda(), Ria(),
        Slimming(), Fpgm(), Apoz(), Activation(), Flap(),
    )
}  # fmt: skip

BLOCK_INFLUENCE = "block_influence"
"""Ranks branches, by how much they turn what passes through them; not a `Criterion`, because a branch has no scores inside."""


def get(name: str) -> Criterion:
    """The criterion of that name, hwprune's own or one of another package's. Raises `UnknownNameError`, `UsageError`."""
    if name in CRITERIA:
        return CRITERIA[name]
    others = plugins.found("hwprune.criteria", Criterion)
    if name not in others:
        raise UnknownNameError("criterion", name, [*CRITERIA, *others])
    criterion: Criterion = others[name]
    return criterion


__all__ = [
    "BLOCK_INFLUENCE",
    "CRITERIA",
    "L1",
    "L2",
    "Activation",
    "Apoz",
    "Criterion",
    "Flap",
    "Fpgm",
    "Gradient",
    "Lamp",
    "Obd",
    "Obs",
    "Random",
    "Ria",
    "Slimming",
    "SparseGPT",
    "Taylor",
    "Wanda",
    "get",
]
