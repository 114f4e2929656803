"""Calibration data in batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import WorkloadError
from hwprune.pruning.pruner import Pruner
from hwprune.workload import batches
from tests.calibration.helpers import fixed_workload
from tests.conftest import randomise, tiny_workload


def test_a_batch_of_another_size_is_said_where_the_model_has_a_fixed_one():
    pruner = Pruner(fixed_workload(extra=2))
    with pytest.raises(WorkloadError, match="drop_last"):
        pruner.statistics(["gram"])
    with pytest.raises(WorkloadError, match="drop_last"):
        pruner.prune(hwprune.uniform_recipe(pruner, "neuron", 0.5, "l1", "sequential"))


def test_examples_are_counted_where_a_sampler_draws_them():
    data = torch.utils.data.TensorDataset(torch.randn(400, 3, 12, 12), torch.zeros(400, dtype=torch.int64))
    loader = torch.utils.data.DataLoader(data, batch_size=8, sampler=torch.utils.data.SubsetRandomSampler(range(64)))

    class Endless:
        def __iter__(self):
            return iter(list(loader))

    workload = dataclasses.replace(
        tiny_workload(), calibration=loader, example_inputs=(torch.randn(1, 3, 12, 12),), metric="top1"
    )
    assert batches.example_count(workload) == 64
    assert batches.example_count(dataclasses.replace(workload, calibration=Endless())) == 64


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x, scale):
        return self.b(torch.relu(self.a(x * scale)))


def test_inputs_without_a_batch_are_not_divided():
    model = randomise(Scaled())
    x, scale = torch.randn(100, 8), torch.ones(8)
    y = torch.zeros(100, dtype=torch.int64)
    workload = hwprune.Workload("scaled", model, (x[:2], scale), [((x, scale), y)], [((x, scale), y)])
    pruner = Pruner(workload)
    pruner.prune(hwprune.uniform_recipe(pruner, "neuron", 0.5, "obs", "obs+sequential"))
