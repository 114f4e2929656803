"""Traps that fuzzing and an independent review found: each was once a wrong cut, a crash or a needless freeze."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune
from tests.conftest import randomise
from tests.structure.test_cut import free_axes, random_keep, relative


class Net(nn.Module):
    """Layers by keyword, the forward as a function of (net, x)."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            if isinstance(layer, nn.Module):
                self.add_module(name, layer)
            elif isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            else:
                self.register_buffer(name, layer, persistent=False)

    def forward(self, x):
        return self.run(self, x)


def nano_gpt(s, x):
    b, t, _ = x.shape
    q, k, v = (part.view(b, t, 4, 4).transpose(1, 2) for part in s.qkv(x).split(16, 2))
    return s.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().view(b, t, 16))


def no_grad_inside(s, x):
    with torch.no_grad():
        scale = torch.arange(3.0)[None, :, None] + 1
    return s.b(torch.relu(s.a(x)) * scale)


def gqa(s, x):
    q, k, v = (f(x).view(x.shape[0], 3, -1, 4).transpose(1, 2) for f in (s.q, s.k, s.v))
    return s.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).sum(1))


def multi_query(s, x):
    q, k, v = (f(x).view(x.shape[0], 3, -1, 4).transpose(1, 2) for f in (s.q, s.k, s.v))
    return s.o(F.scaled_dot_product_attention(q, k, v).sum(1))


def repeated_kv(s, x):
    q, k, v = (f(x).view(x.shape[0], 3, -1, 4).transpose(1, 2) for f in (s.q, s.k, s.v))
    y = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    return s.o(y.transpose(1, 2).reshape(x.shape[0], 3, 16))


def written_through_a_view(s, x):
    z = s.a(x)
    z.view(-1).add_(1.0)
    return s.b(z * z.sum(-1, keepdim=True))


L, C = nn.Linear, nn.Conv2d
CASES = {
    "conv over features": (lambda: Net(lambda s, x: s.b(s.c(s.a(x).unsqueeze(1)).mean(-1)), a=L(4, 6), c=nn.Conv1d(1, 4, 3, padding=1), b=L(4, 2)), (4,)),
    "pooling over features": (lambda: Net(lambda s, x: s.b(F.avg_pool1d(s.a(x).unsqueeze(1), 2).flatten(1)), a=L(4, 6), b=L(3, 2)), (4,)),
    "view after attention": (lambda: Net(nano_gpt, qkv=L(8, 48), o=L(16, 8)), (3, 8)),
    "no_grad inside": (lambda: Net(no_grad_inside, a=L(4, 6), b=L(6, 2)), (3, 4)),
    "untracked batch norm": (lambda: Net(lambda s, x: s.b(s.n(s.a(x))), a=L(4, 6), n=nn.BatchNorm1d(6, track_running_stats=False), b=L(6, 2)), (4,)),
    "computed bias": (lambda: Net(lambda s, x: s.b(F.linear(x, s.w, F.softplus(s.c)).sum(1, keepdim=True)), w=nn.Parameter(torch.ones(6, 4)), c=nn.Parameter(torch.ones(6)), b=L(1, 2)), (4,)),
    "computed filter": (lambda: Net(lambda s, x: F.conv2d(torch.sigmoid(s.a(x)), s.w.exp()).mean((2, 3)), a=C(2, 6, 1), w=nn.Parameter(torch.ones(3, 6, 1, 1))), (2, 4, 4)),
    "padding with ones": (lambda: Net(lambda s, x: s.b(F.pad(s.a(x), (1, 1, 1, 1), value=1.0).sum(1).flatten(1)), a=C(2, 6, 1), b=L(36, 2)), (2, 4, 4)),
    "gqa": (lambda: Net(gqa, q=L(8, 16), k=L(8, 8), v=L(8, 8), o=L(4, 2)), (3, 8)),
    "multi-query": (lambda: Net(multi_query, q=L(8, 16), k=L(8, 4), v=L(8, 4), o=L(4, 2)), (3, 8)),
    "repeated kv": (lambda: Net(repeated_kv, q=L(8, 16), k=L(8, 8), v=L(8, 8), o=L(16, 2)), (3, 8)),
    "instance norm": (lambda: Net(lambda s, x: s.b(F.instance_norm(torch.sigmoid(s.a(x))).sum(1).flatten(1)), a=C(2, 6, 1), b=L(16, 2)), (2, 4, 4)),
    "clipped above zero": (lambda: Net(lambda s, x: s.b(F.hardtanh(s.a(x), 0.5, 1.0).sum(-1, keepdim=True)), a=L(4, 6), b=L(1, 2)), (4,)),
    "smallest norm": (lambda: Net(lambda s, x: s.b(torch.linalg.vector_norm(s.a(x), -float("inf"), -1, keepdim=True)), a=L(4, 6), b=L(1, 2)), (4,)),
    "written through a view": (lambda: Net(written_through_a_view, a=L(4, 6), b=L(6, 2)), (4,)),
    "divided by a buffer": (lambda: Net(lambda s, x: s.b((s.a(x) - 0.1) / s.d), a=L(4, 6), d=torch.ones(6), b=L(6, 2)), (4,)),
    "squeezed": (lambda: Net(lambda s, x: s.b(F.adaptive_avg_pool2d(s.a(x), 1).squeeze()), a=C(2, 6, 1), b=L(6, 2)), (2, 4, 4)),
    "squeezed where nothing is": (lambda: Net(lambda s, x: s.b(s.a(x).squeeze(1)), a=L(4, 6), b=L(6, 2)), (4,)),
    "zeros by batch": (lambda: Net(lambda s, x: s.b(s.a(x) + torch.zeros(x.shape[0] * 6).view(-1, 6)), a=L(4, 6), b=L(6, 2)), (4,)),
    "filter in a buffer": (lambda: Net(lambda s, x: s.b(F.conv2d(s.a(x), s.k, groups=6).mean((2, 3))), a=C(2, 6, 1), k=torch.ones(6, 1, 3, 3), b=L(6, 2)), (2, 4, 4)),
    "flatten": (lambda: Net(lambda s, x: s.b(F.avg_pool2d(torch.relu(s.a(x)), 2).flatten(1)), a=C(2, 6, 1), b=L(24, 2)), (2, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cut_equals_masked(name):
    make, shape = CASES[name]
    model = randomise(make())
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    graph = hwprune.trace(model, (x[:1],))
    assert relative(graph.module(x), model(x)) < 1e-6
    axes = free_axes(graph)
    generator = torch.Generator().manual_seed(1)
    for chosen in [[], *([axis] for axis in axes), axes, axes]:
        keeps = {axis.name: random_keep(axis.size, generator) for axis in chosen}
        assert relative(graph.cut(keeps)(x), graph.mask(keeps)(x)) < 1e-5, [axis.name for axis in chosen]
    for axis in free_axes(graph, exact=False):  # down to a single index: nothing may crash
        assert graph.cut({axis.name: torch.arange(axis.size) < 1})(x).shape == model(x).shape


@pytest.mark.parametrize(
    "name", ["view after attention", "no_grad inside", "repeated kv", "squeezed", "flatten", "filter in a buffer", "gqa"]
)
def test_these_stay_prunable(name):
    make, shape = CASES[name]
    graph = hwprune.trace(randomise(make()), (torch.randn(1, *shape),))
    assert free_axes(graph)


def test_casting_does_not_freeze():
    model = randomise(Net(lambda s, x: s.b(s.a(x).float()), a=L(4, 6), b=L(6, 2)))
    graph = hwprune.trace(model, (torch.randn(2, 4),))
    assert graph.axis("a.weight:0").frozen is None


def test_what_nothing_reads_is_no_axis_and_constrains_none():
    def run(s, x):
        s.a(x).softmax(-1)  # thrown away
        return s.b(torch.relu(s.a(x)))

    graph = hwprune.trace(randomise(Net(run, a=L(4, 6), b=L(6, 2), unused=L(5, 7))), (torch.randn(2, 4),))
    assert graph.axis("a.weight:0").exact
    assert not [axis for axis in graph.axes if axis.name.startswith("unused")]


def test_dropout_that_is_always_on_stays_on():
    model = randomise(Net(lambda s, x: F.dropout(s.a(x), 0.5, True), a=L(4, 60)))
    graph = hwprune.trace(model, (torch.randn(2, 4),))
    x = torch.randn(3, 4)
    assert not torch.equal(graph.cut({})(x), graph.cut({})(x))


def test_buffers_outside_the_state_dict_stay_outside():
    model = randomise(Net(lambda s, x: s.b(s.a(x) * s.k), a=L(4, 6), k=torch.ones(6), b=L(6, 2)))
    small = hwprune.trace(model, (torch.randn(2, 4),)).cut({"a.weight:0": torch.arange(6) < 3})
    assert set(small.state_dict()) == set(model.state_dict())
    assert small.k.shape == (3,)


def test_inputs_that_only_partly_have_a_first_dim_of_one():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = L(6, 2)

        def forward(self, x, y):
            return self.a(x + y)

    graph = hwprune.trace(Two(), (torch.randn(4, 6), torch.randn(1, 6)))
    assert graph.module(torch.randn(4, 6), torch.randn(1, 6)).shape == (4, 2)


def test_depthwise_with_a_multiplier_is_a_channel():
    model = Net(lambda s, x: s.b(s.d(torch.relu(s.a(x)))), a=C(2, 8, 1), d=C(8, 16, 3, groups=8), b=C(16, 2, 1))
    graph = hwprune.trace(randomise(model), (torch.randn(1, 2, 6, 6),))
    assert graph.axis("a.weight:0").role == "channel"


def test_nan_is_not_equal(tiny, monkeypatch):
    from hwprune import pruning

    pruner = pruning.Pruner(tiny)
    candidate = pruner.prune(hwprune.uniform_recipe(tiny, "channel", 0.5))
    monkeypatch.setattr(pruning, "_difference", lambda *_: float("nan"))
    with pytest.raises(hwprune.HwpruneError, match="bug in a rule"):
        pruner.check_cut(candidate)
