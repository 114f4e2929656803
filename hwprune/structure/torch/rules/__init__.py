"""The rule tables, one file per family of operators. Importing this package fills `table.RULES`."""

from hwprune.structure.scope import Kept, Value
from hwprune.structure.torch.rules import (
    attention,
    contract,
    convolve,
    elementwise,
    factory,
    index,
    join,
    normalise,
    quantised,
    recurrent,
    reduce,
    scatter,
    spectral,
    view,
)
from hwprune.structure.torch.rules.table import RULES, Call, Edit, Rule, rule

__all__ = [
    "RULES",
    "Call",
    "Edit",
    "Kept",
    "Rule",
    "Value",
    "attention",
    "contract",
    "convolve",
    "elementwise",
    "factory",
    "index",
    "join",
    "normalise",
    "quantised",
    "recurrent",
    "reduce",
    "rule",
    "scatter",
    "spectral",
    "view",
]
