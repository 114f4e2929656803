"""What a search decides on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hwprune.layers.units import units
from hwprune.structure.torch.analyse import trace
from hwprune.structure.torch.opaque import OpaqueGraph


class Words(nn.Module):
    """A language model in small; ``tied``: its output layer is its embedding."""

    def __init__(self, tied):
        super().__init__()
        self.table, self.middle, self.head = nn.Embedding(12, 6), nn.Linear(6, 6), nn.Linear(6, 12, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(torch.relu(self.middle(self.table(ids))))


@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_zeros_in_an_embedding_forget_words(tied, opaque):
    """So an output layer that is tied to one takes no mask pattern, and is cut with the hidden width as before."""
    model, inputs = Words(tied).eval(), (torch.randint(0, 12, (2, 5)),)
    graph = OpaqueGraph(model, inputs, "a test") if opaque else trace(model, inputs)
    table = units(graph)
    masked = {name for name, unit in table.items() if unit.matrix is not None}
    assert "middle.weight" in masked
    assert bool(masked & {"head.weight", "table.weight"}) == (not tied)
    if not opaque:
        assert any(
            part.parameter in ("table.weight", "head.weight")
            for unit in table.values()
            if unit.axis is not None
            for part in unit.parts
        )
