"""Networks whose residual stream holds the time: what a default search must find worth searching. Random weights, tiny data."""

from __future__ import annotations

import torch
from torch import nn

import hwprune
from tests.conftest import randomise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, all as wide as the residual stream."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.bn2(self.conv2(y)))


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels; three blocks a stage make 20 layers."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [(16, 16, 1)] * blocks
        for before, after in ((16, 32), (32, 64)):
            widths += [(before, after, 2), *[(after, after, 1)] * (blocks - 1)]
        self.blocks = nn.Sequential(*(BasicBlock(*width) for width in widths))
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.blocks(torch.relu(self.bn(self.stem(x)))).mean((2, 3)))


class SeparableBlock(nn.Module):
    """A depthwise and a pointwise convolution, with a shortcut where shapes allow it: no axis of its own."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False)
        self.bn1 = nn.BatchNorm2d(before)
        self.pointwise = nn.Conv2d(before, after, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.residual = before == after and stride == 1

    def forward(self, x):
        y = torch.relu(self.bn2(self.pointwise(torch.relu(self.bn1(self.depthwise(x))))))
        return x + y if self.residual else y


class SeparableNet(nn.Module):
    """Depthwise-separable, with residual sums: nearly all of the time hangs on the width of the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        widths = [(32, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1)]
        self.blocks = nn.Sequential(*(SeparableBlock(*width) for width in widths))
        self.fc = nn.Linear(128, 10)

    def forward(self, x):
        return self.fc(self.blocks(torch.relu(self.bn(self.stem(x)))).mean((2, 3)))


def image_workload(name: str, model: nn.Module) -> hwprune.Workload:
    """The model with random weights and a dozen random images."""
    data = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return hwprune.Workload(name, randomise(model), (data[:1],), [(data, None)], [(data, None)], metric="agreement")
