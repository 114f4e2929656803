"""One small model for each rule that the big families don't reach: cut equals masked, and the axis is really there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune
from tests.conftest import randomise
from tests.structure.programs import check, difference
from tests.structure.torch.test_graph import free_axes, random_keep


class Net(nn.Module):
    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            if isinstance(layer, nn.Module):
                self.add_module(name, layer)
            elif layer.is_floating_point():
                self.register_parameter(name, nn.Parameter(layer))
            else:
                self.register_buffer(name, layer)

    def forward(self, x):
        return self.run(self, x)


def linear(i, o):
    return nn.Linear(i, o)


def between(f, width=8, out=8, positions=5):
    """Linear -> f -> linear over (batch, positions, width)."""
    return lambda: (Net(lambda s, x: s.b(f(s, s.a(x))), a=linear(6, width), b=linear(out, 3)), (4, positions, 6))


def relative_bias(s, x):
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in s.qkv(x).chunk(3, -1))
    bias = s.table[s.index.view(-1)].view(5, 5, -1).permute(2, 0, 1)
    return s.o(((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2))


def rotary(s, x):
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in s.qkv(x).chunk(3, -1))
    with torch.no_grad():
        angle = torch.arange(5.0)[:, None] * s.frequency
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    def turn(t):
        a, b = t.chunk(2, -1)
        return t * cos + torch.cat([-b, a], -1) * sin

    return s.o(F.scaled_dot_product_attention(turn(q), turn(k), v).transpose(1, 2).flatten(2))


def fixed_batch(s, x):
    return s.b(torch.relu(s.a(x)).view(len(x), 5, 8))


CASES = {
    # name: (model and input shape, roles of the exact axes that must be free)
    "relative position bias": (lambda: (Net(relative_bias, qkv=linear(6, 24), o=linear(8, 3), table=torch.randn(9, 2), index=torch.randint(0, 9, (5, 5))), (4, 5, 6)), {"head", "head_dim"}),
    "rotary embedding under no_grad": (lambda: (Net(rotary, qkv=linear(6, 24), o=linear(8, 3), frequency=torch.rand(2)), (4, 5, 6)), {"head", "head_dim"}),
    "index_select of positions": (between(lambda s, y: y.index_select(1, torch.tensor([3, 1, 1]))), {"neuron"}),
    "gather along positions": (between(lambda s, y: y.gather(1, torch.zeros(y.shape[0], 2, y.shape[2], dtype=torch.long))), {"neuron"}),
    "index of several dims": (between(lambda s, y: y[:, torch.tensor([0, 2]), :]), {"neuron"}),
    "cumsum over positions": (between(lambda s, y: y.cumsum(1)), {"neuron"}),
    "topk over positions": (between(lambda s, y: y.topk(2, dim=1).values), {"neuron"}),
    "roll and flip positions": (between(lambda s, y: y.roll(1, 1).flip(1)), {"neuron"}),
    "every second channel": (between(lambda s, y: y[..., ::2], width=16), {"neuron"}),
    "narrow": (between(lambda s, y: y.narrow(-1, 2, 8), width=12), {"neuron"}),
    "pixel shuffle": (lambda: (Net(lambda s, x: s.b(F.pixel_shuffle(torch.relu(s.a(x)), 2)), a=nn.Conv2d(3, 24, 3), b=nn.Conv2d(6, 2, 1)), (4, 3, 6, 6)), {"channel"}),
    "pixel unshuffle": (lambda: (Net(lambda s, x: s.b(F.pixel_unshuffle(torch.relu(s.a(x)), 2)), a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(24, 2, 1)), (4, 3, 6, 6)), {"channel"}),
    "channel shuffle": (lambda: (Net(lambda s, x: s.b(F.channel_shuffle(torch.relu(s.a(x)), 2)), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 2, 1)), (4, 3, 6, 6)), {"channel"}),
    "unfold (im2col)": (lambda: (Net(lambda s, x: s.b(F.unfold(torch.relu(s.a(x)), 2).transpose(1, 2)), a=nn.Conv2d(3, 6, 3), b=linear(24, 2)), (4, 3, 6, 6)), {"channel"}),
    "weight norm": (lambda: (Net(lambda s, x: s.b(torch.relu(s.a(x)).mean(-1)), a=nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 8, 3)), b=linear(8, 2)), (4, 3, 9)), {"channel"}),
    "bilinear": (lambda: (Net(lambda s, x: s.c(s.b(s.a(x), s.d(x))), a=linear(6, 8), d=linear(6, 4), b=nn.Bilinear(8, 4, 8), c=linear(8, 2)), (4, 6)), {"neuron"}),
    "logsumexp over positions": (between(lambda s, y: y.logsumexp(1)), {"neuron"}),
    "experts": (lambda: (Net(lambda s, x: torch.einsum("beh,ehd->bed", torch.relu(torch.einsum("bd,edh->beh", x, s.up)), s.down).sum(1), up=torch.randn(4, 6, 8), down=torch.randn(4, 8, 3)), (4, 6)), {"expert", "neuron"}),
    "x @ weight": (lambda: (Net(lambda s, x: torch.relu(x @ s.u) @ s.v, u=torch.randn(6, 8), v=torch.randn(8, 3)), (4, 6)), {"neuron"}),
    "a fixed batch": (lambda: (Net(fixed_batch, a=linear(6, 8), b=linear(8, 3)), (1, 5, 6)), set()),
    "grid sample": (lambda: (Net(lambda s, x: s.b(F.grid_sample(torch.relu(s.a(x)), x.new_zeros(x.shape[0], 2, 2, 2), align_corners=False)), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 2, 1)), (4, 3, 6, 6)), {"channel"}),
    "gelu by hand is no residual stream": (between(lambda s, y: 0.5 * y * (1 + torch.tanh(y + 0.04 * y**3))), {"neuron"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cut_equals_masked_and_the_axis_is_found(name):
    make, roles = CASES[name]
    torch.manual_seed(0)
    model, shape = make()
    model = randomise(model).double()
    x = torch.randn(shape, dtype=torch.float64)
    graph = hwprune.trace(model, (x[:1],))
    assert roles <= {axis.role for axis in free_axes(graph)}
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        keeps = {axis.name: random_keep(axis.size, generator) for axis in free_axes(graph)}
        with torch.no_grad():
            assert difference(graph.cut(keeps)(x), graph.mask(keeps)(x)) < 1e-9
    keeps = {axis.name: random_keep(axis.size, generator) for axis in free_axes(graph, exact=False)}
    small = graph.cut(keeps)
    small(x)
    counts = {n: int(k.sum()) for n, k in keeps.items()}
    assert sum(p.numel() for p in small.parameters()) == graph.parameter_count(counts)


def test_statistics_over_an_axis_make_it_inexact():
    """A group norm written with instance norm runs its statistics over what looks like positions."""

    def run(s, x):
        y = s.a(x)
        return s.b(F.instance_norm(y.reshape(y.shape[0], 2, -1)).reshape(y.shape))

    graph = hwprune.trace(randomise(Net(run, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 2, 1))), (torch.randn(1, 3, 6, 6),))
    inner = [axis for axis in graph.axes if not axis.frozen and axis.size == 4]
    assert inner and not any(axis.exact for axis in inner)


@pytest.mark.parametrize("seed", range(0, 60))
def test_random_programs(seed):
    assert check(seed) is None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_random_programs():
    faults = {seed: fault for seed in range(100_000, 101_000) if (fault := check(seed))}
    assert faults == {}
