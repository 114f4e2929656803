"""A candidate back in the user's own class."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from tests.conftest import TinyNet, randomise, tiny_workload


class Attention(nn.Module):
    """Remembers its numbers of heads and sizes, as most libraries' classes do."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim = 4, 6
        self.qkv, self.proj = nn.Linear(10, 72), nn.Linear(24, 3)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, t, -1))


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).reshape(x.shape[0], 12))


def prepared(model, x, roles):
    data = [(torch.cat([x, x]), None)]
    pruner = Pruner(hwprune.Workload("own", model, (x,), data, data, metric="agreement"))
    units = [u for u in pruner.units.values() if u.role in roles]
    return pruner.prune(hwprune.Recipe(tuple(hwprune.UnitChoice(u.name, u.role, 0.5, "l2") for u in units), "none"))


def test_a_cnn_goes_on_in_its_own_class():
    workload = tiny_workload()
    candidate = hwprune.prune(workload, hwprune.uniform_recipe(workload, "channel", 0.5))
    own = hwprune.apply_to_module(workload.model, candidate)
    assert type(own) is TinyNet and own.conv1.out_channels == 32 and own.bn1.num_features == 32
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(own.eval()(x), candidate.module(x), atol=1e-5)
    own.train()(x).sum().backward()
    assert workload.model.conv1.weight.shape[0] == 64  # the original is not touched


def test_numbers_of_heads_are_set():
    candidate = prepared(randomise(Attention()), torch.randn(1, 5, 10), ("head",))
    own = hwprune.apply_to_module(Attention(), candidate)
    assert (own.num_heads, own.head_dim, own.qkv.out_features) == (2, 6, 36)


def test_sizes_fixed_in_the_forward_are_refused():
    candidate = prepared(randomise(Stubborn()), torch.randn(1, 6), ("neuron",))
    with pytest.raises(UsageError, match="can't hold the candidate's shapes"):
        hwprune.apply_to_module(Stubborn(), candidate)


def test_dropped_branches_are_refused():
    workload = tiny_workload()
    candidate = hwprune.prune(workload, hwprune.uniform_recipe(workload, "branch", 1.0))
    with pytest.raises(UsageError, match="branches were dropped"):
        hwprune.apply_to_module(workload.model, candidate)
