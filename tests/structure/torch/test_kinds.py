"""Small models of the kinds that people bring: recurrent, graph, spectral, grouped by the batch. Cut equals masked, and masks change something."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune
from tests.conftest import randomise
from tests.structure.programs import difference
from tests.structure.torch.test_graph import free_axes, random_keep


class Net(nn.Module):
    """A function of the module and its inputs, with the given layers; plain tensors become parameters."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            if isinstance(layer, nn.Module):
                self.add_module(name, layer)
            elif layer.is_floating_point() or layer.is_complex():
                self.register_parameter(name, nn.Parameter(layer))
            else:
                self.register_buffer(name, layer)

    def forward(self, *x):
        return self.run(self, *x)


L = nn.Linear
SEQUENCE, IMAGE, ROWS = (2, 6, 8), (2, 3, 12, 12), (3, 8)


def rows(f, width=16, out=16):
    return lambda: (Net(lambda s, x: s.b(f(s, s.a(x), x)), a=L(8, width), q=L(8, width), b=L(out, 4)), ROWS)


def images(f, out=16):
    return lambda: (Net(lambda s, x: s.b(f(s, s.a(x), x)), a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(out, 4, 1)), IMAGE)


def recurrent(layer, take=lambda y: y[0], width=24):
    def run(s, x):
        return s.c(torch.relu(s.b(take(s.r(torch.relu(s.a(x)))))))

    return lambda: (Net(run, a=L(8, 16), r=layer(), b=L(width, 20), c=L(20, 4)), SEQUENCE)


def both_states(y):
    out, (h, c) = y
    return torch.cat([out[:, -1], h[-1], c[0]], 1)


def learned_start(s, x):
    state = s.h.expand(1, x.shape[0], 24).contiguous(), s.c0.expand(1, x.shape[0], 24).contiguous()
    return s.b(s.r(torch.relu(s.a(x)), state)[0])


def loop(s, x):
    y, h, c = torch.relu(s.a(x)), x.new_zeros(x.shape[0], 24), x.new_zeros(x.shape[0], 24)
    for step in range(3):
        h, c = s.r(y[:, step], (h, c))
    return s.b(h)


def crnn(s, x):
    y = torch.relu(s.bn(s.conv(x)))
    y = y.mean(2).transpose(1, 2)
    return s.head(s.r(y)[0])


def graph_net(add):
    def run(s, x):
        source, target = s.edges
        message = torch.relu(s.a(x[source]))
        return s.b(add(s, message, target) + s.q(x))

    edges = torch.tensor([[0, 1, 2, 0, 2], [1, 2, 0, 2, 1]])
    return lambda: (Net(run, a=L(8, 16), q=L(8, 16), b=L(16, 4), edges=edges), ROWS)


def spectral(s, x):
    y = s.lift(x)
    f = torch.fft.rfft2(y)
    out = torch.zeros_like(f)
    out[:, :, :4, :4] = torch.einsum("bihw,iohw->bohw", f[:, :, :4, :4], torch.view_as_complex(s.w))
    return s.head(torch.relu(torch.fft.irfft2(out, s=y.shape[-2:]) + s.skip(y)))


def complex_rotary(s, x):
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in s.qkv(x).chunk(3, -1))
    turns = torch.polar(torch.ones_like(s.angle), s.angle)

    def turn(t):
        return torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (4, 2))) * turns).flatten(-2)

    return s.o(F.scaled_dot_product_attention(turn(q), turn(k), v).transpose(1, 2).flatten(2))


def style(s, x):
    b = x.shape[0]
    y = torch.relu(s.a(x))
    gain = s.affine(x.mean((2, 3)))
    weight = s.w[None] * gain[:, None, :, None, None]
    y = F.conv2d(y.reshape(1, b * 16, *y.shape[2:]), weight.reshape(b * 12, 16, 3, 3), groups=b)
    return s.b(torch.relu(y.reshape(b, 12, *y.shape[2:])))


def merged_heads(s, x):
    b, t, d = x.shape

    def heads(y):
        return y.view(b, -1, 4, 8).transpose(1, 2).contiguous().view(b * 4, -1, 8)

    q, k, v = heads(s.q(x)), heads(s.k(x)), heads(s.v(x))
    scores = torch.bmm(q, k.transpose(1, 2)).view(b, 4, t, t) + s.bias
    weights = scores.view(b * 4, t, t).softmax(-1)
    return s.o(torch.bmm(weights, v).view(b, 4, t, 8).transpose(1, 2).reshape(b, t, 32))


def repeated_positions(s, x):
    """Disentangled attention: one table of relative positions, repeated for every example of the batch."""
    b, t, _ = x.shape

    def heads(y):
        return y.view(y.shape[0], y.shape[1], 4, 8).permute(0, 2, 1, 3).reshape(-1, y.shape[1], 8)

    q, k, v = heads(s.q(x)), heads(s.k(x)), heads(s.v(x))
    place = heads(s.k(s.table[None])).repeat(b, 1, 1)
    scores = torch.bmm(q, k.transpose(1, 2)) + torch.bmm(q, place.transpose(1, 2))
    y = torch.bmm(scores.softmax(-1), v)
    return s.o(y.view(b, 4, t, 8).permute(0, 2, 1, 3).reshape(b, t, 32))


def cached(s, x):
    cache = x.new_zeros(x.shape[0], 10, 16)
    cache[:, : x.shape[1]] = s.k(x)
    return s.o(torch.softmax(s.q(x) @ cache.transpose(1, 2), -1) @ cache)


def unet_norm(s, x):
    low = torch.relu(s.down(s.i(x)))
    both = torch.cat([s.i(x), F.interpolate(s.up(low), size=x.shape[-2:])], 1)
    return s.o(torch.relu(s.norm(both)))


def mixer(s, x):
    y = s.e(x).flatten(2).transpose(1, 2)
    return s.o((y + s.b(torch.relu(s.a(y)))).mean(1))


def shuffle_block(s, x):
    for branch in (s.one, s.two):
        left, right = x.chunk(2, 1)
        x = torch.cat([left, torch.relu(branch(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return s.head(x)


KINDS = {
    "lstm": recurrent(lambda: nn.LSTM(16, 24, batch_first=True)),
    "lstm, time first": recurrent(lambda: nn.LSTM(16, 24)),
    "lstm without bias": recurrent(lambda: nn.LSTM(16, 24, batch_first=True, bias=False)),
    "lstm, three layers both ways": recurrent(lambda: nn.LSTM(16, 12, 3, batch_first=True, bidirectional=True)),
    "lstm, states read": recurrent(lambda: nn.LSTM(16, 8, 2, batch_first=True), both_states),
    "lstm, projected": recurrent(lambda: nn.LSTM(16, 12, batch_first=True, proj_size=6), width=6),
    "lstm, learned start": lambda: (Net(learned_start, a=L(8, 16), r=nn.LSTM(16, 24, batch_first=True), b=L(24, 4), h=torch.zeros(1, 1, 24), c0=torch.zeros(1, 1, 24)), SEQUENCE),
    "gru": recurrent(lambda: nn.GRU(16, 24, batch_first=True)),
    "gru, two layers both ways": recurrent(lambda: nn.GRU(16, 12, 2, batch_first=True, bidirectional=True, dropout=0.1)),
    "gru, last state": recurrent(lambda: nn.GRU(16, 24, 2, batch_first=True), lambda y: y[1][-1]),
    "rnn": recurrent(lambda: nn.RNN(16, 24, batch_first=True)),
    "rnn, relu": recurrent(lambda: nn.RNN(16, 24, batch_first=True, nonlinearity="relu")),
    "lstm cells in a loop": lambda: (Net(loop, a=L(8, 16), r=nn.LSTMCell(16, 24), b=L(24, 4)), SEQUENCE),
    "convolutions, then recurrent": lambda: (Net(crnn, conv=nn.Conv2d(3, 16, 3), bn=nn.BatchNorm2d(16), r=nn.LSTM(16, 12, 2, batch_first=True, bidirectional=True), head=L(24, 5)), IMAGE),
    "index_add": graph_net(lambda s, m, t: torch.zeros(3, 16, dtype=m.dtype).index_add(0, t, m)),
    "index_add_": graph_net(lambda s, m, t: m.new_zeros(3, 16).index_add_(0, t, m)),
    "scatter_add": graph_net(lambda s, m, t: m.new_zeros(3, 16).scatter_add(0, t[:, None].expand_as(m), m)),
    "scatter_reduce": graph_net(lambda s, m, t: m.new_zeros(3, 16).scatter_reduce(0, t[:, None].expand_as(m), m, "amax")),
    "index_put accumulates": graph_net(lambda s, m, t: m.new_zeros(3, 16).index_put((t,), m, accumulate=True)),
    "index_copy": rows(lambda s, y, x: y.index_copy(0, torch.tensor([1, 0]), s.q(x)[:2])),
    "assigned by number": rows(lambda s, y, x: _assign(y, s.q(x))),
    "select assigned": lambda: (Net(lambda s, x: s.b(_first(s.a(x), s.q(x))), a=L(8, 16), q=L(8, 16), b=L(16, 4)), SEQUENCE),
    "slices assigned": images(lambda s, y, x: _shift(y)),
    "cache written": lambda: (Net(cached, k=L(8, 16), q=L(8, 16), o=L(16, 4)), SEQUENCE),
    "einsum with an ellipsis": rows(lambda s, y, x: y * torch.einsum("...d,...d->...", y, s.q(x)).unsqueeze(-1)),
    "einsum without a result": rows(lambda s, y, x: torch.einsum("...i,...i", y, s.q(x)).unsqueeze(-1) * y),
    "einsum, broadcast ellipsis": lambda: (Net(lambda s, x: s.b(torch.einsum("...ij,jk->...ik", s.a(x), s.w)), a=L(8, 16), b=L(12, 4), w=torch.zeros(16, 12)), SEQUENCE),
    "cdist": rows(lambda s, y, x: y + torch.cdist(y, s.q(x)).mean(-1, True)),
    "cummax": rows(lambda s, y, x: y.cummax(0)[0]),
    "max_unpool2d": images(lambda s, y, x: F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2)),
    "antialias": images(lambda s, y, x: F.interpolate(y, size=5, mode="bilinear", antialias=True)),
    "complex": rows(lambda s, y, x: torch.complex(y, s.q(x)).abs()),
    "fourier over rows": rows(lambda s, y, x: torch.fft.rfft(y, dim=0).real[:1] + y),
    "spectral convolution": lambda: (Net(spectral, lift=nn.Conv2d(3, 16, 1), w=torch.zeros(16, 16, 4, 4, 2), skip=nn.Conv2d(16, 16, 1), head=nn.Conv2d(16, 2, 1)), IMAGE),
    "complex rotary embedding": lambda: (Net(complex_rotary, qkv=L(8, 48), o=L(16, 4), angle=torch.rand(6, 4)), SEQUENCE),
    "weights for each example": lambda: (Net(style, a=nn.Conv2d(3, 16, 1), affine=L(3, 16), w=torch.zeros(12, 16, 3, 3), b=nn.Conv2d(12, 2, 1)), IMAGE),
    "heads in the batch": lambda: (Net(merged_heads, q=L(32, 32), k=L(32, 32), v=L(32, 32), o=L(32, 3), bias=torch.zeros(4, 6, 6)), (2, 6, 32)),
    "positions for each example": lambda: (Net(repeated_positions, q=L(32, 32), k=L(32, 32), v=L(32, 32), o=L(32, 3), table=torch.zeros(6, 32)), (2, 6, 32)),
    "group norm over a concatenation": lambda: (Net(unet_norm, i=nn.Conv2d(3, 32, 3, padding=1), down=nn.Conv2d(32, 48, 3, 2, 1), up=nn.Conv2d(48, 64, 1), norm=nn.GroupNorm(8, 96), o=nn.Conv2d(96, 3, 1)), IMAGE),
    "kernel 1 over tokens": lambda: (Net(mixer, e=nn.Conv2d(3, 32, 4, 4), a=nn.Conv1d(9, 18, 1), b=nn.Conv1d(18, 9, 1), o=L(32, 10)), IMAGE),
    "channels shuffled twice": lambda: (Net(lambda s, x: shuffle_block(s, s.stem(x)), stem=nn.Conv2d(3, 16, 1), one=nn.Conv2d(8, 8, 1), two=nn.Conv2d(8, 8, 1), head=nn.Conv2d(16, 3, 1)), IMAGE),
    "spectral norm": lambda: (nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 16, 3)), nn.ReLU(), nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1)), IMAGE),
    "repeat_interleave, size told": lambda: (Net(lambda s, x: s.b((s.a(x).unflatten(-1, (2, 6)).repeat_interleave(2, dim=2, output_size=4) * s.k(x).unflatten(-1, (4, 6))).flatten(2)), a=L(8, 12), k=L(8, 24), b=L(24, 4)), SEQUENCE),
    "vmap": rows(lambda s, y, x: torch.vmap(lambda a, b: a * b.sum())(y, s.q(x))),
    "tiled": rows(lambda s, y, x: y.tile(1, 2), out=32),
}  # fmt: skip


def _assign(y, other):
    out = torch.zeros_like(y)
    out[torch.tensor([2, 0, 1])] = y
    out[0] = other[1]
    return out


def _first(y, other):
    y = y.clone()
    y[:, 0] = other[:, 1]
    return y


def _shift(y):
    out = torch.zeros_like(y)
    out[:, :4, 1:] = y[:, :4, :-1]
    out[:, 4:] = y[:, 4:]
    return out


VACUOUS_ALONE = ("spectral norm",)
"""Its weight is divided by its own norm, so an axis may change little."""


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cut_equals_masked(kind):
    torch.manual_seed(0)
    model, shape = KINDS[kind]()
    model = randomise(model).double().eval()
    draw = torch.Generator().manual_seed(1)
    batched = kind not in ("index_copy", "assigned by number") and shape is not ROWS and kind != "lstm, time first"
    x = torch.randn(shape, generator=draw, dtype=torch.float64)
    graph = hwprune.trace(model, (x,))
    other = torch.randn(5 if batched else shape[0], *shape[1:], generator=draw, dtype=torch.float64)
    assert difference(graph.module(other), model(other)) < 1e-9
    free = free_axes(graph, exact=False)
    assert free, {axis.name: axis.frozen for axis in graph.axes}
    for _ in range(3):
        keeps = {axis.name: random_keep(axis.size, draw) for axis in free if axis.exact}
        assert difference(graph.cut(keeps)(other), graph.mask(keeps)(other)) < 1e-9
        every = {axis.name: random_keep(axis.size, draw) for axis in free}
        small = graph.cut(every)
        assert torch.isfinite(small(other)).all()
        counts = {name: int(keep.sum()) for name, keep in every.items()}
        assert sum(p.numel() for p in small.parameters()) == graph.parameter_count(counts)
    for axis in free:
        half = {axis.name: torch.arange(axis.size) % 2 == 0}
        said = difference(graph.mask(half)(other), model(other))
        assert said > 1e-3 or kind in VACUOUS_ALONE, f"masking half of {axis.name} changes nothing"


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        ("lstm", [("a.weight", 0), ("r.weight_hh_l0", 1), ("b.weight", 0)]),
        ("lstm, three layers both ways", [("r.weight_hh_l0", 1), ("r.weight_hh_l1", 1), ("r.weight_hh_l2", 1)]),
        ("gru, two layers both ways", [("r.weight_hh_l0", 1), ("r.weight_hh_l1", 1)]),
        ("convolutions, then recurrent", [("conv.weight", 0), ("r.weight_hh_l0", 1), ("r.weight_hh_l1", 1)]),
        ("spectral convolution", [("lift.weight", 0)]),
        ("weights for each example", [("a.weight", 0), ("w", 0)]),
        ("heads in the batch", [("bias", 0)]),
        ("kernel 1 over tokens", [("e.weight", 0), ("a.weight", 0)]),
        ("index_add", [("a.weight", 0)]),
        ("group norm over a concatenation", [("down.weight", 0)]),
    ],
)
def test_what_a_person_would_cut_is_free(kind, members):
    """Each of these dims is an axis of its own."""
    model, shape = KINDS[kind]()
    graph = hwprune.trace(model, (torch.randn(shape),))
    owners = {member: axis.name for axis in free_axes(graph) for member in axis.members}
    assert set(members) <= set(owners), {axis.name: axis.frozen or axis.inexact_reason for axis in graph.axes}
    assert len({owners[member] for member in members}) == len(members)


def test_parts_of_a_concatenation_under_a_group_norm_go_together():
    model, shape = KINDS["group norm over a concatenation"]()
    graph = hwprune.trace(model, (torch.randn(shape),))
    axis = graph.axis("i.weight:0/1")  # 32 and 64 channels in groups of 12: a third of each group is one axis
    small = graph.cut({axis.name: torch.arange(axis.size) < 1})
    assert small.get_parameter("norm.weight").shape[0] == 96 - 8 * 3
    assert small(torch.randn(1, 3, 12, 12)).shape == (1, 3, 12, 12)


def test_cells_in_a_loop_train():
    """PyTorch's own cells write into parts of a split tensor, which autograd forbids when they are traced."""
    model, shape = KINDS["lstm cells in a loop"]()
    module = hwprune.trace(model, (torch.randn(shape),)).module
    module.train()
    module(torch.randn(shape)).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
