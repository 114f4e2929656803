"""Shared small models and workloads. Nothing here is trained: structure and bookkeeping need no accuracy."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared: threads of several processes would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

import hwprune
from hwprune.latency import fresh, source

# Most tests look at bookkeeping, not at times: two short processes tell as much of that as six long ones. Processes that tests
# start measure as users' do.
fresh.PROCESSES, fresh.SESSIONS, fresh.LIMIT_S = 2, 1, 0.05
source.GATE_SESSIONS = 2

# Options of the tests' models do not belong into the user's cache; processes that tests start inherit it.
_DATABASE = tempfile.TemporaryDirectory(prefix="hwprune-tests-")
os.environ["HWPRUNE_DATABASE"] = _DATABASE.name


class TinyNet(nn.Module):
    """conv-BN-ReLU with a residual block; wide enough for a channel multiple of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 8, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean(dim=(2, 3)))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, norms and running statistics away from their neutral values, so that a wrong slice shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if "running_var" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
    return model.eval()


def tiny_workload(metric: str = "agreement") -> hwprune.Workload:
    model = randomise(TinyNet())
    data = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(data).argmax(1)
    batches = list(zip(data.split(20), labels.split(20), strict=True))
    return hwprune.Workload(
        name="tiny",
        model=model,
        example_inputs=(data[:1],),
        calibration=batches[:1],
        validation=batches,
        test=batches,
        metric=metric,
    )


@pytest.fixture
def tiny() -> hwprune.Workload:
    return tiny_workload()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One real, finished search that several tests read."""
    out = tmp_path_factory.mktemp("search") / "run"
    hwprune.search(tiny_workload("top1"), trials=5, out=out, seed=3)
    return out
