"""Patterns: scores -> keep_mask. One file a family, one table.

Begin with `base`; a new pattern is one file and one row in the table below.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hwprune.common import plugins
from hwprune.errors import UnknownNameError
from hwprune.patterns.axis import WholeIndex
from hwprune.patterns.base import Pattern
from hwprune.patterns.block import Block
from hwprune.patterns.n_of_m import NOfM
from hwprune.patterns.unstructured import Unstructured, UnstructuredRow
from hwprune.structure import borders

AXIS_PATTERNS: dict[str, Pattern] = {
    role: WholeIndex(role) for role in ("channel", "head", "head_dim", "neuron", "hidden", "group", "expert", *borders.FORMS)
}
"""The patterns of axes, one for each role; applied by cutting."""

TOKENS: dict[str, str] = {borders.TOKEN: "attention", borders.MERGE: "likeness"}
"""Those of tokens -> what decides, for each input, which go: not scores of weights, so that no criterion is chosen."""

WEIGHT_PATTERNS: dict[str, Pattern] = {
    "unstructured": Unstructured(),
    "unstructured:row": UnstructuredRow(),
    "2:4": NOfM(2, 4),
    "2:4:permuted": NOfM(2, 4, permutes=True),
    "4:8": NOfM(4, 8),
    "1:4": NOfM(1, 4),
    "block:4x1": Block(4, 1),
    "block:4x4": Block(4, 4),
}
"""The patterns of weights, applied by masking. The families N:M and block:RxC take any numbers."""

BRANCH = "branch"
"""A whole residual branch, dropped: not chosen by scores, so it is no `Pattern`."""

PATTERNS: dict[str, Pattern] = {**AXIS_PATTERNS, **WEIGHT_PATTERNS}


def get(name: str, more: Sequence[str] = ()) -> Pattern:
    """The pattern of that name, hwprune's own or another package's; ``N:M`` and ``block:RxC`` with any numbers.

    Raises `UnknownNameError`, `UsageError`. ``more``: names that the caller knows besides, for the message.
    """
    if name in PATTERNS:
        return PATTERNS[name]
    if match := re.fullmatch(r"(\d{1,4}):(\d{1,4})(:permuted)?", name):
        return NOfM(int(match[1]), int(match[2]), permutes=match[3] is not None)
    if match := re.fullmatch(r"block:(\d{1,4})x(\d{1,4})", name):
        return Block(int(match[1]), int(match[2]))
    others = plugins.found("hwprune.patterns", Pattern)
    if name not in others:
        raise UnknownNameError("pattern", name, [*PATTERNS, *others, *more], "N:M and block:RxC take any numbers.")
    pattern: Pattern = others[name]
    return pattern


def is_axis(name: str) -> bool:
    """Is it applied by cutting an axis (and not by masking a weight)?"""
    return name in AXIS_PATTERNS


__all__ = [
    "AXIS_PATTERNS",
    "BRANCH",
    "PATTERNS",
    "TOKENS",
    "WEIGHT_PATTERNS",
    "Block",
    "NOfM",
    "Pattern",
    "Unstructured",
    "UnstructuredRow",
    "WholeIndex",
    "get",
    "is_axis",
]
