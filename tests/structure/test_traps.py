"""Traps that fuzzing and an independent review found: each was once a wrong cut, a crash or a needless freeze."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune
from hwprune.pruning import cut_check
from tests.conftest import randomise
from tests.structure.torch.test_graph import free_axes, random_keep, relative


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


def causal_with_learned_queries(s, x):
    y = F.scaled_dot_product_attention(s.q.expand(x.shape[0], -1, -1), s.k(x), s.v(x), is_causal=True)
    return torch.einsum("bqd,q->bd", y, s.w)


def lora(s, x):
    return F.linear(x, torch.addmm(s.w, s.p, s.q))


def filters_by_example(s, x):
    """As many groups as examples times channels; the linear layer beside it must stay prunable."""
    z, b = torch.relu(s.a(x)), x.shape[0]
    y = F.conv2d(z.reshape(1, -1, 4, 4), z.mean((2, 3)).reshape(-1, 1, 1, 1), groups=b * 6).reshape(b, 6, 4, 4)
    return s.d(torch.relu(s.c(y.mean((2, 3)))))


P = lambda *shape: nn.Parameter(torch.randn(*shape))  # noqa: E731
L, C = nn.Linear, nn.Conv2d
CASES = {
    "cosine with one side not zero": (lambda: Net(lambda s, x: s.b(F.cosine_similarity(s.a(x), torch.sigmoid(s.c(x)), dim=-1)[:, None]), a=L(4, 6), c=L(4, 6), b=L(1, 2)), (4,)),
    "causal attention, learned queries": (lambda: Net(causal_with_learned_queries, q=P(3, 4), k=L(4, 4), v=L(4, 4), w=P(3)), (3, 4)),
    "lora": (lambda: Net(lora, w=P(6, 4), p=P(6, 2), q=P(2, 4)), (4,)),
    "slice from the end with a step": (lambda: Net(lambda s, x: s.b(s.a(x)[:, -5::2]), a=L(4, 6), b=L(3, 2)), (4,)),
    "numpy T of three dims": (lambda: Net(lambda s, x: x @ s.w.T.sum(0), w=P(4, 4, 4)), (4,)),
    "group norm with a computed bias": (lambda: Net(lambda s, x: s.b(F.group_norm(s.a(x), 3, s.w, F.softplus(s.c)).sum(1, keepdim=True)), a=L(4, 6), w=P(6), c=P(6), b=L(1, 2)), (4,)),
    "instance norm with a computed bias": (lambda: Net(lambda s, x: s.b(F.instance_norm(s.a(x), weight=s.w, bias=F.softplus(s.c)).sum(1).flatten(1)), a=C(2, 6, 1), w=P(6), c=P(6), b=L(16, 2)), (2, 4, 4)),
    "rsqrt of a buffer": (lambda: Net(lambda s, x: s.b(s.a(x) * (s.v**2).rsqrt()), a=L(4, 6), v=torch.rand(6) + 1, b=L(6, 2)), (4,)),
    "log": (lambda: Net(lambda s, x: s.b(torch.log(s.a(x) ** 2)), a=L(4, 6), b=L(6, 2)), (4,)),
    "divided by itself": (lambda: Net(lambda s, x: (lambda z: s.b(z / z))(s.a(x)), a=L(4, 6), b=L(6, 2)), (4,)),
    "a number divided by it": (lambda: Net(lambda s, x: s.b(1 / s.a(x)), a=L(4, 6), b=L(6, 2)), (4,)),
    "groups by example": (lambda: Net(filters_by_example, a=C(2, 6, 1), c=L(6, 8), d=L(8, 2)), (2, 4, 4)),
    "channel shuffle of a concatenation": (lambda: Net(lambda s, x: s.b(F.channel_shuffle(torch.cat([s.a(x), s.c(x)], 1), 2)), a=C(2, 5, 1), c=C(2, 7, 1), b=C(12, 2, 1)), (2, 4, 4)),
    "fold of a concatenation": (lambda: Net(lambda s, x: s.b(F.fold(torch.cat([s.a(x), s.c(x)], 1), (4, 4), (2, 2), stride=2)), a=nn.Conv1d(2, 5, 1), c=nn.Conv1d(2, 7, 1), b=C(3, 2, 1)), (2, 4)),
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
    from hwprune.pruning import pruner as pruning

    pruner = pruning.Pruner(tiny)
    candidate = pruner.prune(hwprune.uniform_recipe(tiny, "channel", 0.5))
    monkeypatch.setattr(cut_check, "relative_difference", lambda *_: float("nan"))
    with pytest.raises(hwprune.HwpruneError, match="bug in a rule"):
        pruner.check_cut(candidate)


def sliced_write(s, x):
    z = s.a(x)
    z[:, :3] += 1
    return s.c(z + s.b(torch.relu(z)))


def flat_write(s, x):
    z = s.a(x)
    z.view(-1).add_(1)
    return s.c(z + s.b(torch.relu(z)))


@pytest.mark.parametrize("run", [sliced_write, flat_write])
def test_writes_through_views_survive_a_dropped_branch(run):
    model, x = randomise(Net(run, a=L(4, 6), b=L(6, 6), c=L(6, 2))), torch.randn(3, 4)
    graph = hwprune.trace(model, (x[:1],))
    drop = [branch.name for branch in graph.branches]
    assert drop
    with torch.no_grad():
        assert relative(graph.cut({}, drop)(x), graph.mask({}, drop)(x)) < 1e-6


def nested_sums(s, x):
    p = torch.relu(x)
    return s.o(x + (p + s.f(p)))


def onnx_equals(graph, module, keeps, drop, x, tmp_path):
    import onnxruntime

    from hwprune.onnx_files.template import Template

    used = Template(graph, (x[:1],)).write(module, keeps, tmp_path / "m.onnx", drop)
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, len(x)):
        with torch.no_grad():
            expected = torch.utils._pytree.tree_leaves(module(x[:batch]))
        found = session.run(None, {session.get_inputs()[0].name: x[:batch].numpy()})
        for ours, theirs in zip(found, expected, strict=True):
            assert relative(torch.from_numpy(ours), theirs) < 1e-5
    return used


def test_the_file_drops_the_branch_that_was_meant(tmp_path):
    model, x = randomise(Net(nested_sums, f=L(4, 4), o=L(4, 2))), torch.randn(3, 4)
    graph = hwprune.trace(model, (x[:1],))
    assert len(graph.branches) == 2
    for drop in [[branch.name] for branch in graph.branches] + [[branch.name for branch in graph.branches]]:
        onnx_equals(graph, graph.cut({}, drop), {}, drop, x, tmp_path)


def conv_is_also_an_output(s, x):
    y = s.c(x)
    return y, s.b(s.n(y).mean((2, 3)))


def learned_number(s, x):
    return s.b(s.a(x) * s.t + torch.exp(s.t))


def returns_a_parameter(s, x):
    return s.b(s.a(x)), s.q


ONNX_CASES = {
    "a convolution that is also an output": (lambda: Net(conv_is_also_an_output, c=C(2, 6, 1), n=nn.BatchNorm2d(6), b=L(6, 2)), (2, 4, 4)),
    "a learned number": (lambda: Net(learned_number, a=L(4, 6), b=L(6, 2), t=nn.Parameter(torch.tensor(0.3))), (4,)),
    "a parameter is returned": (lambda: Net(returns_a_parameter, a=L(4, 6), b=L(6, 2), q=P(3, 5)), (4,)),
    "squeezed, batch of one": (lambda: Net(lambda s, x: s.b(s.n(s.a(x).unsqueeze(1).squeeze(1))), a=L(4, 6), n=nn.BatchNorm1d(6), b=L(6, 2)), (4,)),
}  # fmt: skip


@pytest.mark.parametrize("name", ONNX_CASES)
def test_files_follow_the_weights_of_the_module(name, tmp_path):
    """The candidate was trained after it was cut: nothing of the dense weights may be left in its file."""
    make, shape = ONNX_CASES[name]
    model, x = randomise(make()), torch.randn(3, *shape)
    graph = hwprune.trace(model, (x[:1],))
    keeps = {a.name: torch.arange(a.size) % 2 == 0 for a in free_axes(graph)}
    small = graph.cut(keeps)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(1.3).add_(0.05)
    onnx_equals(graph, small, keeps, (), x, tmp_path)
