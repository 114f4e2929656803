"""What several test files of this folder need."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def images(n=64, channels=3, size=12, seed=0):
    """Smooth random images: neighbouring pixels are alike, as in photographs."""
    return F.avg_pool2d(torch.randn(n, channels, size + 2, size + 2, generator=torch.Generator().manual_seed(seed)), 3, 1) * 3


class Plain(nn.Module):
    """No batch norm; strides, groups, a depthwise layer, and two inputs of one layer (a concat)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.join = nn.Conv2d(32, 16, 1)
        self.groups = nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=4)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], dim=1)))
        return self.fc(torch.relu(self.groups(torch.relu(self.join(x)))).mean(dim=(2, 3)))
