"""Every exact axis of many small models: cut equals masked, counts are predicted, and the axes are the expected ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune
from hwprune.errors import TraceError, UnknownNameError, UsageError
from tests.conftest import TinyNet, randomise


class OptionA(nn.Module):
    """A stride-2 block whose shortcut subsamples and pads 4 zero channels on both sides."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 1, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.a(x))
        y = self.c(torch.relu(self.b(x)))
        return self.fc(torch.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + y).mean((2, 3)))


class Dense(nn.Module):
    """Concatenation of all earlier features."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 4, 3, 1, 1), nn.Conv2d(10, 4, 1)
        self.bn, self.fc = nn.BatchNorm2d(10), nn.Linear(14 * 4, 5)

    def forward(self, x):
        a = torch.relu(self.a(x))
        ab = torch.cat([a, torch.relu(self.b(a))], 1)
        out = torch.cat([ab, self.c(torch.relu(self.bn(ab)))], 1)
        return self.fc(F.adaptive_avg_pool2d(out, 2).flatten(1))


class Inverted(nn.Module):
    """Inverted residual with a depthwise convolution and squeeze-excite."""

    def __init__(self):
        super().__init__()
        self.stem, self.expand = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 24, 1, bias=False)
        self.bn1, self.depthwise = nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False)
        self.bn2, self.down, self.up = nn.BatchNorm2d(24), nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project, self.fc = nn.Conv2d(24, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        y = F.relu6(self.bn2(self.depthwise(F.relu6(self.bn1(self.expand(x))))))
        y = y * torch.sigmoid(self.up(F.silu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return self.fc((x + self.project(y)).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution and a transposed one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 24, 3, 1, 1, groups=4)
        self.c, self.up = nn.Conv2d(24, 6, 1), nn.ConvTranspose2d(6, 10, 2, 2)
        self.d = nn.Conv2d(10, 2, 1)

    def forward(self, x):
        return self.d(F.gelu(self.up(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))))


class Attention(nn.Module):
    """Fused or separate projections, head_dim 4, 3 heads, explicit softmax or the fused operator."""

    def __init__(self, fused, explicit):
        super().__init__()
        self.fused, self.explicit = fused, explicit
        self.embed, self.norm = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12)
        if fused:
            self.qkv = nn.Linear(12, 36)
        else:
            self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.proj, self.fc1, self.fc2, self.fc = nn.Linear(12, 12), nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        b, t, c = x.shape
        y = self.norm(x)
        if self.fused:
            q, k, v = self.qkv(y).reshape(b, t, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(y).view(b, t, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.explicit:
            y = (q @ k.transpose(-2, -1) * 4**-0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
        return self.fc((x + self.fc2(F.gelu(self.fc1(x)))).mean(1))


class Torch(nn.Module):
    """torch's own encoder layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.1, batch_first=True)
        self.embed, self.fc = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(self.layer(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class Gqa(nn.Module):
    """Four query heads on two KV heads, by expanding them, and SwiGLU from one fused projection."""

    def __init__(self):
        super().__init__()
        self.embed, self.q, self.kv, self.o = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.gate_up, self.down, self.fc = nn.Linear(8, 24), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        b, t, _ = x.shape
        q = self.q(x).view(b, t, 4, 4).transpose(1, 2)
        k, v = (part.view(b, t, 2, 4).transpose(1, 2) for part in self.kv(x).chunk(2, -1))
        k, v = (part[:, :, None].expand(b, 2, 2, t, 4).reshape(b, 4, t, 4) for part in (k, v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, 16))
        gate, up = self.gate_up(x).split(12, -1)
        return self.fc((x + self.down(F.silu(gate) * up)).mean(1))


class Plain(nn.Module):
    """VGG-like, with flatten before the classifier, dropout, and a tied linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 10, 3, 1, 1), nn.BatchNorm2d(10)
        self.fc1, self.fc2, self.drop = nn.Linear(40, 14), nn.Linear(14, 5), nn.Dropout(0.3)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.b(torch.relu(self.a(x)))), 4)
        return self.fc2(self.drop(torch.relu(self.fc1(self.bn(x).flatten(1)))))


MODELS = {
    "tiny": (TinyNet, {"conv1.weight:0": ("channel", 64), "stem.weight:0": ("hidden", 8)}),
    "option-a": (
        OptionA,
        {
            "a.weight:0": ("hidden", 8),
            "b.weight:0": ("channel", 12),
            "c.weight:0/0": ("hidden", 4),
            "c.weight:0/2": ("hidden", 4),
        },
    ),
    "dense": (Dense, {"a.weight:0": ("channel", 6), "b.weight:0": ("channel", 4), "c.weight:0": ("channel", 4)}),
    "inverted": (Inverted, {"expand.weight:0": ("channel", 24), "down.weight:0": ("channel", 6), "stem.weight:0": ("hidden", 8)}),
    "grouped": (
        Grouped,
        {
            "a.weight:0/0": ("group", 4),
            "a.weight:0/1": ("channel", 3),
            "b.weight:0/1": ("channel", 6),
            "c.weight:0": ("channel", 6),
            "up.weight:1": ("channel", 10),
        },
    ),
    "fused": (
        lambda: Attention(True, False),
        {"qkv.weight:0/1": ("head", 3), "qkv.weight:0/2": ("head_dim", 4), "fc1.weight:0": ("neuron", 20)},
    ),
    "separate": (
        lambda: Attention(False, True),
        {"q.weight:0/0": ("head", 3), "q.weight:0/1": ("head_dim", 4), "v.weight:0/1": ("head_dim", 4)},
    ),
    "torch": (Torch, {"layer.self_attn.in_proj_weight:0/1": ("head", 3), "layer.linear1.weight:0": ("neuron", 20)}),
    "gqa": (Gqa, {"q.weight:0/0": ("head", 2), "q.weight:0/1": ("head", 2), "gate_up.weight:0": ("neuron", 12)}),
    "plain": (Plain, {"a.weight:0": ("channel", 6), "b.weight:0": ("channel", 10), "fc1.weight:0": ("neuron", 14)}),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    make, expected = MODELS[request.param]
    model = randomise(make())
    channels = 1 if request.param == "tiny" else 3
    x = torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(2))
    return model, x, hwprune.trace(model, (x[:1],)), expected


def free_axes(graph, exact=True):
    return [axis for axis in graph.axes if axis.frozen is None and (axis.exact or not exact)]


def random_keep(size, generator):
    keep = torch.rand(size, generator=generator) < 0.5
    keep[int(torch.randint(size, (), generator=generator))] = True
    return keep


def relative(a, b):
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())


def test_dense_graph_computes_what_the_model_does(case):
    model, x, graph, _ = case
    assert relative(graph.module(x), model(x)) < 1e-6


def test_expected_axes_are_found(case):
    _, _, graph, expected = case
    found = {axis.name: (axis.role, axis.size) for axis in graph.axes if axis.frozen is None}
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize("seed", range(3))
def test_cut_equals_masked(case, seed):
    _, x, graph, _ = case
    generator = torch.Generator().manual_seed(seed)
    axes = free_axes(graph)
    for chosen in [*([axis] for axis in axes), axes]:
        keeps = {axis.name: random_keep(axis.size, generator) for axis in chosen}
        assert relative(graph.cut(keeps)(x), graph.mask(keeps)(x)) < 1e-5, [axis.name for axis in chosen]


def test_masking_changes_the_output(case):
    """Otherwise the comparison above would compare nothing."""
    model, x, graph, _ = case
    keeps = {axis.name: random_keep(axis.size, torch.Generator().manual_seed(9)) for axis in free_axes(graph)}
    assert relative(graph.mask(keeps)(x), model(x)) > 1e-3


def test_sizes_are_predicted(case):
    _, _, graph, _ = case
    keeps = {axis.name: random_keep(axis.size, torch.Generator().manual_seed(5)) for axis in free_axes(graph, exact=False)}
    counts = {name: int(keep.sum()) for name, keep in keeps.items()}
    small = graph.cut(keeps)
    assert graph.parameter_count(counts) == sum(p.numel() for p in small.parameters())
    for name, parameter in small.named_parameters():
        assert graph.shape(name, counts) == tuple(parameter.shape)


def test_names_survive_and_the_dense_model_is_untouched(case):
    model, x, graph, _ = case
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = graph.cut({axis.name: torch.arange(axis.size) < 1 for axis in free_axes(graph)})
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1)
    assert set(small.state_dict()) == set(before)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_cut_models_train(case):
    """Gradients reach every parameter and equal numeric ones along a random direction."""
    _, x, graph, _ = case
    keeps = {axis.name: random_keep(axis.size, torch.Generator().manual_seed(1)) for axis in free_axes(graph)}
    small = graph.cut(keeps).double().eval()
    x = x.double()
    small(x).square().sum().backward()
    parameters = list(small.parameters())
    assert all(p.grad is not None for p in parameters)
    generator = torch.Generator().manual_seed(0)
    step = [torch.randn(p.shape, generator=generator, dtype=torch.float64) * 1e-6 for p in parameters]
    slope = sum(float((p.grad * s).sum()) for p, s in zip(parameters, step, strict=True))
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, s in zip(parameters, step, strict=True):
                p.add_(sign * s)
            values.append(float(small(x).square().sum()))
    assert slope == pytest.approx((values[0] - values[1]) / 2, rel=1e-4)


def test_train_and_eval_switch_batch_norm_and_dropout():
    graph = hwprune.trace(randomise(Plain()), (torch.randn(1, 3, 8, 8),))
    small = graph.cut({"b.weight:0": torch.arange(10) < 6})
    x = torch.randn(4, 3, 8, 8)
    mean = small.bn.running_mean.clone()
    assert torch.equal(small(x), small(x))
    assert torch.equal(small.bn.running_mean, mean)
    small.train()
    assert not torch.equal(small(x), small(x))  # dropout
    assert not torch.equal(small.bn.running_mean, mean)
    small.eval()
    assert torch.equal(small(x), small(x))


def test_implicit_attention_scale_is_pinned():
    """1 / sqrt(head_dim) would change with head_dim."""
    model = randomise(Attention(True, False))
    x = torch.randn(2, 3, 8, 8)
    graph = hwprune.trace(model, (x,))
    keeps = {"qkv.weight:0/2": torch.tensor([True, False, True, False])}
    assert relative(graph.cut(keeps)(x), graph.mask(keeps)(x)) < 1e-5


def test_axes_under_a_statistic_are_marked():
    graph = hwprune.trace(Attention(True, False).eval(), (torch.randn(1, 3, 8, 8),))
    width = graph.axis("embed.weight:0")
    assert (width.role, width.exact, width.frozen) == ("hidden", False, None)
    assert "layer_norm" in width.inexact_reason


def test_contracting_values_that_a_mask_does_not_zero_is_not_called_exact():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.o = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 2)

        def forward(self, x):
            return self.o(torch.sigmoid(self.q(x)) @ torch.sigmoid(self.k(x)).transpose(1, 2) @ x)

    graph = hwprune.trace(Linear().eval(), (torch.randn(1, 5, 4),))
    assert not graph.axis("q.weight:0").exact


def test_operator_without_a_rule_freezes_what_it_touches_and_says_so():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.sort(self.a(x), dim=-1).values)))

    graph = hwprune.trace(Sorted().eval(), (torch.randn(2, 4),))
    assert "sort" in graph.axis("a.weight:0").frozen
    assert graph.axis("b.weight:0").frozen is None


def test_inputs_and_outputs_are_frozen():
    graph = hwprune.trace(TinyNet().eval(), (torch.randn(1, 1, 8, 8),))
    assert graph.axis("fc.weight:0").frozen == "model output"


def test_tied_parameters_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.d = nn.Linear(6, 6)
            self.d.weight = self.b.weight

        def forward(self, x):
            return self.c(torch.relu(self.d(torch.relu(self.b(torch.relu(self.a(x)))))))

    graph = hwprune.trace(randomise(Tied()), (torch.randn(2, 4),))
    keeps = {axis.name: torch.arange(axis.size) != 1 for axis in free_axes(graph)}
    assert keeps
    small = graph.cut(keeps)
    assert small.b.weight is small.d.weight
    x = torch.randn(5, 4)
    assert relative(small(x), graph.mask(keeps)(x)) < 1e-5


@pytest.mark.parametrize(
    ("keeps", "text"),
    [
        ({"fc.weight:0": torch.ones(4, dtype=torch.bool)}, "model output"),
        ({"conv1.weight:0": torch.ones(63, dtype=torch.bool)}, r"\(64,\)"),
        ({"conv1.weight:0": torch.ones(64)}, "bool"),
        ({"conv1.weight:0": torch.zeros(64, dtype=torch.bool)}, "at least one"),
    ],
)
def test_wrong_keeps_are_refused(keeps, text):
    graph = hwprune.trace(TinyNet().eval(), (torch.randn(1, 1, 8, 8),))
    with pytest.raises(UsageError, match=text):
        graph.cut(keeps)


def test_unknown_axis_names_the_nearest():
    graph = hwprune.trace(TinyNet().eval(), (torch.randn(1, 1, 8, 8),))
    with pytest.raises(UnknownNameError, match=r"conv1\.weight:0"):
        graph.cut({"conv1.weigth:0": torch.ones(64, dtype=torch.bool)})


def test_untraceable_models_say_why():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(TraceError, match="can't trace Branch"):
        hwprune.trace(Branch(), (torch.randn(2, 2),))


def test_macs_of_a_convolution_and_a_linear_layer():
    graph = hwprune.trace(TinyNet().eval(), (torch.randn(1, 1, 8, 8),))
    pixels = 64
    dense = pixels * 9 * (1 * 8 + 8 * 64 + 64 * 8) + 8 * 4
    assert graph.macs({}, batch=1) == dense
    assert graph.macs({"conv1.weight:0": 16}, batch=3) == 3 * (pixels * 9 * (1 * 8 + 8 * 16 + 16 * 8) + 8 * 4)
