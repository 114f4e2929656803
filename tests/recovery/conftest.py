"""A small network that has learned something, and data to train it on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hwprune
from hwprune.pruning.pruner import Pruner


class Net(nn.Module):
    """conv - BN - relu, a residual block with dropout, and a head: everything that behaves differently in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.outer = nn.Conv2d(width, 8, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.outer(self.drop(torch.relu(self.bn2(self.inner(x)))))
        y: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return y


def examples(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stripes of four kinds under noise."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=draw)
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    kinds = torch.stack([torch.sin(1.5 * x), torch.sin(1.5 * y), torch.sin(1.2 * (x + y)), torch.sin(1.2 * (x - y))])
    images = kinds[labels] + 1.6 * torch.randn(count, 8, 8, generator=draw)
    return images[:, None], labels


def batches(count: int, seed: int, size: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = examples(count, seed)
    return list(zip(images.split(size), labels.split(size), strict=True))


def make(metric: str = "top1", width: int = 16) -> hwprune.Workload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net(width)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        net.train()
        for _ in range(4):
            for images, labels in batches(256, 1):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images), labels).backward()
                optimizer.step()
    train = batches(256, 1)
    return hwprune.Workload(
        "stripes", net.eval(), (torch.zeros(1, 1, 8, 8),), train[:4], batches(200, 2), batches(200, 3), train, metric
    )


@pytest.fixture(scope="session")
def stripes() -> Pruner:
    """A pruner of the network; nothing may change it."""
    return Pruner(make())
