"""What several test files of this folder need."""

from __future__ import annotations

import torch
from torch import nn

import hwprune
from hwprune.calibration.collect import collect_statistics
from hwprune.structure.torch.analyse import trace
from tests.calibration.test_collect import workload_of
from tests.conftest import randomise


def statistics_of(model, inputs, names=("gram",), **options):
    workload = workload_of(model, inputs, torch.zeros(len(inputs[0]), dtype=torch.int64), **options.pop("more", {}))
    return collect_statistics(trace(model, workload.example_inputs), workload, names, **options).layers


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.relu(self.fc(x.reshape(4, 6, 8).transpose(0, 1)))).mean(dim=0)


def fixed_workload(extra=0):
    model = randomise(FixedBatch())
    x = torch.randn(8 + extra, 6, 8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(8 + extra, dtype=torch.int64)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, len(x), 4)]
    return hwprune.Workload("fixed", model, (x[:4],), batches, batches[:2])
