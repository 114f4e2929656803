"""Operators without a rule of their own are written in others: what they pass on can be cut, and is cut right."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune

SEQUENCE = {
    "linalg.norm": lambda s, y, x: y / torch.linalg.norm(y, dim=-1, keepdim=True),
    "vecdot": lambda s, y, x: y * torch.linalg.vecdot(y, s.q(x)).unsqueeze(-1),
    "tensordot": lambda s, y, x: y + torch.tensordot(y, s.b.weight, ([1], [1])).sum(-1, True),
    "pairwise_distance": lambda s, y, x: y * F.pairwise_distance(y, s.q(x), keepdim=True),
    "hstack": lambda s, y, x: sum(torch.hstack([y, s.q(x)]).chunk(2, 1)),
    "concat": lambda s, y, x: sum(torch.concat([y, s.q(x)], 1).chunk(2, 1)),
    "concatenate": lambda s, y, x: sum(torch.concatenate([y, s.q(x)], -1).chunk(2, 1)),
    "diff over rows": lambda s, y, x: torch.diff(y, dim=0, prepend=y[:1]),
    "isfinite": lambda s, y, x: torch.where(torch.isfinite(y), y, 0.0),
    "broadcast_tensors": lambda s, y, x: torch.broadcast_tensors(y, y[:1])[1] + y,
    "std_mean": lambda s, y, x: y - torch.std_mean(y, (0,), keepdim=True)[1],
    "logit": lambda s, y, x: torch.logit(y.sigmoid(), 1e-5),
    "acos": lambda s, y, x: torch.acos(y.tanh()),
    "asinh": lambda s, y, x: torch.asinh(y) + torch.atanh(y.tanh() * 0.9),
    "frac": lambda s, y, x: y.frac(),
    "hypot": lambda s, y, x: torch.hypot(y, s.q(x)),
    "nansum": lambda s, y, x: y * y.nansum(0),
    "tile": lambda s, y, x: y.tile(2, 1)[: len(x)],
}
IMAGES = {
    "interpolate nearest-exact": lambda s, y, x: F.interpolate(y, size=5, mode="nearest-exact"),
    "rot90": lambda s, y, x: y.rot90(1, (2, 3)),
}


class Net(nn.Module):
    def __init__(self, function, images):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.a, self.b = (nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)) if images else (nn.Linear(8, 16), nn.Linear(16, 4))
        self.q = nn.Linear(8, 16)

    def forward(self, x):
        return self.b(self.function(self, self.a(x), x))


@pytest.mark.parametrize("name", [*SEQUENCE, *IMAGES])
@torch.no_grad()
def test_an_axis_that_passes_is_free_and_cut_right(name):
    images = name in IMAGES
    model = Net(IMAGES[name] if images else SEQUENCE[name], images).eval()
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(1, 3, 10, 10, generator=draw) if images else torch.randn(3, 8, generator=draw)
    graph = hwprune.trace(model, (x,))
    assert torch.allclose(graph.module(x), model(x), atol=1e-5)
    free = [axis for axis in graph.axes if not axis.frozen]
    assert free, {axis.name: axis.frozen for axis in graph.axes}
    for axis in free:
        keep = {axis.name: torch.arange(axis.size) % 2 == 0}
        cut, masked = graph.cut(keep)(x), graph.mask(keep)(x)
        assert sum(p.numel() for p in graph.cut(keep).parameters()) < sum(p.numel() for p in model.parameters())
        assert (masked - model(x)).abs().max() > 1e-3  # masking says something
        if axis.exact:
            assert torch.allclose(cut, masked, atol=1e-4), axis.name
        assert torch.isfinite(cut).all()


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        (lambda a, b, c: torch.addcdiv(a, b, c), False),
        (lambda a, b, c: torch.addcdiv(a, b, c.abs() + 1e-3), True),
        (lambda a, b, c: a * (b.square() + 1e-5).rsqrt(), True),
        (lambda a, b, c: a * b.square().rsqrt(), False),
        (lambda a, b, c: a * (b.square() + 0.0).rsqrt(), False),
        (lambda a, b, c: torch.xlogy(a.abs(), b.abs()), True),
        (lambda a, b, c: torch.xlogy(a.abs() + 1, b.abs()), False),
        (lambda a, b, c: a * torch.reciprocal(torch.sqrt(b * b + 1e-6)), True),
        (lambda a, b, c: a * (b * b + 1e-6) ** -0.5, True),
        (lambda a, b, c: a * torch.log(1 + b.abs()), True),
        (lambda a, b, c: a * torch.log(b.abs()), False),
        (lambda a, b, c: a / (b.abs() + 1e-3), True),
        (lambda a, b, c: a / b, False),
        (lambda a, b, c: a * (torch.sigmoid(b) - 0.5).reciprocal(), False),
        (lambda a, b, c: a * ((b + 1) - 1).reciprocal(), False),
        (lambda a, b, c: a * (torch.relu(b + 1e-3) + 1e-5).rsqrt(), None),
    ],
    ids=range(16),
)
@torch.no_grad()
def test_exact_is_what_is_exact(function, exact):
    """An infinity or a NaN of the masked model is no exact cut, and an epsilon before the division makes it one."""

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c, self.o = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.o(function(self.a(x), self.b(x), self.c(x)))

    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    graph = hwprune.trace(Three().eval(), (x,))
    axis = next(axis for axis in graph.axes if not axis.frozen)
    keep = {axis.name: torch.arange(axis.size) < 8}
    same = torch.allclose(graph.cut(keep)(x), graph.mask(keep)(x), atol=1e-4)
    assert not axis.exact or same  # never called exact where it is not
    if exact is not None:
        assert axis.exact == exact == same


@torch.no_grad()
def test_a_frozen_batch_norm_is_exact():
    class FrozenBatchNorm(nn.Module):
        def __init__(self, n):
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.rand(n, generator=torch.Generator().manual_seed(0)) + 0.5)

        def forward(self, x):
            w, b, v, m = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_var, self.running_mean))
            scale = w * (v + 1e-5).rsqrt()
            return x * scale + (b - m * scale)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), FrozenBatchNorm(16), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = hwprune.trace(model, (x,))
    axis = next(axis for axis in graph.axes if not axis.frozen)
    keep = {axis.name: torch.arange(16) < 8}
    assert axis.size == 16 and axis.exact
    assert torch.allclose(graph.cut(keep)(x), graph.mask(keep)(x), atol=1e-5)


def test_a_shifted_copy_ends():
    """Rows beside the rows before them: their indices can't be told apart, and taking them apart would never end."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            y = self.a(x)
            return self.b(y[:, 1:] - y[:, :-1])

    x = torch.randn(2, 500, 8)
    graph = hwprune.trace(Shifted().eval(), (x,))
    assert [axis.size for axis in graph.axes if not axis.frozen] == [16]


@torch.no_grad()
def test_what_has_a_rule_stays_as_it_is():
    """A size that is read, or an operator that is rewritten, leaves batch norms alone: they still follow train()."""

    class Classic(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Linear(16 * 9, 4)

        def forward(self, x):
            y = torch.relu(self.norm(self.conv(x)))
            return self.head(torch.hstack([y[:, :8], y[:, 8:]]).view(x.size(0), -1))

    model, x = Classic().eval(), torch.randn(4, 3, 5, 5)
    graph = hwprune.trace(model, (x,))
    assert [axis.name for axis in graph.axes if not axis.frozen] == ["conv.weight:0/0", "conv.weight:0/1"]
    before = graph.module(x)
    graph.module.train()
    assert not torch.allclose(graph.module(x), before)
    model.train()
    assert torch.allclose(graph.module(x), model(x), atol=1e-5)
