"""Compensations of one layer at a time, in the table so that recipes can name them.

`hwprune.methods.layerwise` computes them with the options.
"""

from __future__ import annotations

from typing import final

from torch import fx

from hwprune.compensation.base import Compensation, Context
from hwprune.structure.torch.analyse import WEIGHT_ARGUMENT
from hwprune.structure.torch.opaque import opaque_model


@final
class Local(Compensation):
    local = True
    needs = ("gram",)

    def __init__(self, name: str, description: str) -> None:
        self.name, self.description = name, description

    def applies(self, module: fx.GraphModule) -> bool:
        return opaque_model(module) is not None or any(node.target in WEIGHT_ARGUMENT for node in module.graph.nodes)

    def apply(self, module: fx.GraphModule, context: Context) -> None:
        """Do nothing: the options' weights are in place already."""
