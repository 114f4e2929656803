"""Positions that matter."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from hwprune.calibration.collect import collect_statistics
from hwprune.structure.torch.analyse import trace
from tests.calibration.helpers import statistics_of
from tests.calibration.test_collect import workload_of
from tests.conftest import randomise


class ClassToken(nn.Module):
    """The query of one token only is used; keys and values of all."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, ids):
        x = self.embed(ids)
        y = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.o(y[:, 0])


def test_layers_that_share_an_input_use_every_position_that_matters_to_one_of_them():
    model = randomise(ClassToken())
    ids = torch.randint(0, 50, (40, 6), generator=torch.Generator().manual_seed(0))
    x = model.embed(ids).detach().reshape(-1, 8)
    for name in ("q.weight", "k.weight", "v.weight"):
        assert torch.allclose(statistics_of(model, (ids,))[name].gram[0].float(), x.T @ x / len(x), atol=1e-5)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.h = nn.Embedding(50, 8), nn.Linear(8, 8)
        self.pool, self.token = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, ids):
        h = torch.tanh(self.h(self.embed(ids)))
        return self.pool(h[:, 0]), self.token(h)


def test_positions_that_matter_to_any_output_count():
    model = randomise(TwoOutputs())
    ids = torch.randint(0, 50, (30, 5), generator=torch.Generator().manual_seed(0))
    workload = workload_of(model, (ids,), torch.zeros(30, dtype=torch.int64))
    found = collect_statistics(trace(model, (ids[:1],)), workload).layers["h.weight"]
    assert found.rows == 150
