"""Gram matrices in the traps of real models."""

from __future__ import annotations

import torch
from torch import nn

import hwprune
from hwprune.layers.statistics import LayerStatistics
from hwprune.pruning.pruner import Pruner
from tests.calibration.helpers import statistics_of
from tests.calibration.test_collect import workload_of
from tests.compensation.test_sequential import loss
from tests.conftest import randomise


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.i, self.h, self.t = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.t(torch.relu(self.h(torch.relu(self.i(x)))).transpose(0, 1)).mean(dim=0)


def test_rows_of_sequence_first_layers_belong_together():
    model = randomise(SequenceFirst())
    workload = workload_of(model, (torch.randn(128, 7, 6, generator=torch.Generator().manual_seed(0)),), batch=64)
    pruner = Pruner(workload)
    choice = (hwprune.UnitChoice("h.weight", "unstructured", 0.3, "l1"),)
    found = {
        steps: loss(workload, pruner.prune(hwprune.Recipe(choice, steps)).module) for steps in ("none", "obs", "obs+sequential")
    }
    assert found["obs+sequential"] <= found["obs"] < found["none"]


def test_a_large_mean_does_not_swallow_the_covariance():
    x = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)) + 3000
    for found in (
        LayerStatistics.of_inputs(x),
        statistics_of(randomise(nn.Sequential(nn.Linear(6, 3))), (x,), more={"batch": 1000})["0.weight"],
    ):
        values = torch.linalg.eigvalsh(found.hessian(centred=True)[0])
        assert float(values.min()) > 0.8
        assert float(values.max()) < 1.2
        assert torch.allclose(found.channel_variance, torch.ones(6), atol=0.1)


class TiedAndUntraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = torch.relu(self.a(x))
        if float(x.sum()) < -1:
            x = x + 1
        return self.b(x * 10)


def test_a_weight_of_two_modules_sees_the_inputs_of_both():
    model = randomise(TiedAndUntraceable())
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    pruner = Pruner(workload_of(model, (x,)))
    both = torch.cat([x, torch.relu(model.a(x)).detach() * 10])
    assert pruner.layers["a.weight"].bias is None
    assert torch.allclose(pruner.statistics(["gram"]).layers["a.weight"].mean[0], both.mean(dim=0), atol=1e-4)
    assert pruner.default_compensation() == "obs"
