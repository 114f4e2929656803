"""Models of the zoo written here, of kinds that libraries of models have few of: detectors, diffusion, speech, state spaces, graphs.

Each is the block that makes its kind what it is, small, with random weights. They need PyTorch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor
Built = tuple[nn.Module, tuple[Tensor, ...]]


class Net(nn.Module):
    """Layers, and a function of the module and its inputs."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            if isinstance(layer, nn.Module):
                self.add_module(name, layer)
            elif layer.is_floating_point():
                self.register_parameter(name, nn.Parameter(layer))
            else:
                self.register_buffer(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


L, C = nn.Linear, nn.Conv2d


def cbs(i: int, o: int, k: int = 3, s: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), nn.SiLU())


def image(size: int = 32, channels: int = 3) -> tuple[Tensor, ...]:
    return (torch.randn(2, channels, size, size),)


def heads(y: Tensor, count: int) -> Tensor:
    return y.unflatten(-1, (count, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, count: int = 4) -> Tensor:
    return F.scaled_dot_product_attention(heads(q, count), heads(k, count), heads(v, count)).transpose(1, 2).flatten(2)


# -- detectors -------------------------------------------------------------------------------


class C2f(nn.Module):
    def __init__(self, i: int, o: int, count: int = 2) -> None:
        super().__init__()
        self.half = o // 2
        self.first, self.last = cbs(i, o, 1), cbs((2 + count) * self.half, o, 1)
        self.blocks = nn.ModuleList(nn.Sequential(cbs(self.half, self.half), cbs(self.half, self.half)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Sppf(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = cbs(width, width // 2, 1), cbs(width * 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """Backbone, C2f, SPPF, two scales, a decoupled head whose boxes are expectations over bins (DFL)."""

    def __init__(self, classes: int = 5, bins: int = 8) -> None:
        super().__init__()
        self.bins = bins
        self.stem, self.b1, self.b2 = cbs(3, 16, 3, 2), nn.Sequential(cbs(16, 32, 3, 2), C2f(32, 32)), cbs(32, 64, 3, 2)
        self.top = nn.Sequential(C2f(64, 64), Sppf(64))
        self.up, self.down, self.merge = C2f(96, 32), cbs(32, 32, 3, 2), C2f(96, 64)
        self.box = nn.ModuleList(nn.Sequential(cbs(w, 16), nn.Conv2d(16, 4 * bins, 1)) for w in (32, 64))
        self.score = nn.ModuleList(nn.Sequential(cbs(w, 16), nn.Conv2d(16, classes, 1)) for w in (32, 64))
        self.register_buffer("steps", torch.arange(bins, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        low = self.b1(self.stem(x))
        high = self.top(self.b2(low))
        low = self.up(torch.cat([F.interpolate(high, scale_factor=2.0), low], 1))
        high = self.merge(torch.cat([self.down(low), high], 1))
        found = []
        for feature, box, score in zip((low, high), self.box, self.score, strict=True):
            b, _, h, w = feature.shape
            bins = box(feature).view(b, 4, self.bins, h * w).softmax(2)
            found.append(torch.cat([(bins * self.steps.view(1, 1, -1, 1)).sum(2), score(feature).flatten(2).sigmoid()], 1))
        return torch.cat(found, 2)


class Ssd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Sequential(cbs(3, 24, 3, 2), cbs(24, 32, 3, 2)), cbs(32, 48, 3, 2), cbs(48, 64, 3, 2)])
        self.heads = nn.ModuleList(nn.Conv2d(w, 3 * 9, 3, padding=1) for w in (32, 48, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for stage, head in zip(self.body, self.heads, strict=True):
            x = stage(x)
            found.append(head(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 9))
        whole = torch.cat(found, 1)
        return whole[..., :4], whole[..., 4:]


class Fcos(nn.Module):
    """One head shared by all scales, group norms in it, a learned scale for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.c3, self.c4 = nn.Sequential(cbs(3, 24, 3, 2), cbs(24, 32, 3, 2)), cbs(32, 64, 3, 2)
        self.l3, self.l4 = nn.Conv2d(32, 32, 1), nn.Conv2d(64, 32, 1)
        self.tower = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU())
        self.score, self.box, self.scales = nn.Conv2d(32, 5, 1), nn.Conv2d(32, 4, 1), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        c3 = self.c3(x)
        p4 = self.l4(self.c4(c3))
        p3 = self.l3(c3) + F.interpolate(p4, size=c3.shape[-2:], mode="nearest")
        found = []
        for level, feature in enumerate((p3, p4)):
            y = self.tower(feature)
            found += [self.score(y), (self.box(y) * self.scales[level]).exp()]
        return found


def centre_net(s: Net, x: Tensor) -> tuple[Tensor, ...]:
    y = s.up(s.body(x))
    heat = s.heat(y).sigmoid()
    peak = (F.max_pool2d(heat, 3, 1, 1) == heat).float()
    return heat * peak, s.size(y), s.offset(y)


class DecoderLayer(nn.Module):
    """Self-attention over queries, attention to memory, feed-forward; positions are added to queries and keys."""

    def __init__(self, d: int = 32, hidden: int = 48) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.cq, self.ck, self.cv, self.co = (nn.Linear(d, d) for _ in range(4))
        self.f1, self.f2 = nn.Linear(d, hidden), nn.Linear(hidden, d)
        self.n1, self.n2, self.n3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, memory: Tensor, place: Tensor) -> Tensor:
        x = self.n1(x + self.o(attend(self.q(x + place), self.k(x + place), self.v(x))))
        x = self.n2(x + self.co(attend(self.cq(x + place), self.ck(memory), self.cv(memory))))
        return self.n3(x + self.f2(torch.relu(self.f1(x))))


class Detr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(cbs(3, 16, 3, 2), cbs(16, 24, 3, 2), nn.Conv2d(24, 32, 1))
        self.queries, self.place = nn.Parameter(torch.randn(6, 32)), nn.Parameter(torch.randn(1, 32, 8, 8))
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(2))
        self.score, self.box = nn.Linear(32, 5), nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        memory = (self.body(x) + self.place).flatten(2).transpose(1, 2)
        y = torch.zeros_like(self.queries).expand(x.shape[0], -1, -1)
        for layer in self.layers:
            y = layer(y, memory, self.queries)
        return self.score(y), self.box(y).sigmoid()


class RtDetr(nn.Module):
    """Hybrid encoder (attention on the top level, fusion by concatenation), queries picked by score, boxes refined layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.c3, self.c4 = nn.Sequential(cbs(3, 16, 3, 2), cbs(16, 24, 3, 2)), cbs(24, 48, 3, 2)
        self.p3, self.p4 = nn.Conv2d(24, 32, 1), nn.Conv2d(48, 32, 1)
        self.inside = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=False)
        self.fuse = cbs(64, 32)
        self.score, self.box = nn.Linear(32, 5), nn.Linear(32, 4)
        self.place, self.layers = (
            nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 32)),
            nn.ModuleList([DecoderLayer(), DecoderLayer()]),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        c3 = self.c3(x)
        p4 = self.p4(self.c4(c3))
        p4 = self.inside(p4.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(p4.shape)
        p3 = self.fuse(torch.cat([self.p3(c3), F.interpolate(p4, scale_factor=2.0)], 1))
        memory = torch.cat([p3.flatten(2), p4.flatten(2)], 2).transpose(1, 2)
        best = self.score(memory).amax(-1).topk(6, 1).indices
        y = memory.gather(1, best[..., None].expand(-1, -1, 32))
        box = self.box(y).sigmoid()
        for layer in self.layers:
            y = layer(y, memory, self.place(box))
            box = (self.box(y) + torch.logit(box.clamp(1e-4, 1 - 1e-4))).sigmoid()
        return self.score(y), box


# -- diffusion and other generators ----------------------------------------------------------


class TimeBlock(nn.Module):
    def __init__(self, i: int, o: int, t: int = 32) -> None:
        super().__init__()
        self.n1, self.c1, self.t = nn.GroupNorm(4, i), nn.Conv2d(i, o, 3, padding=1), nn.Linear(t, 2 * o)
        self.n2, self.c2 = nn.GroupNorm(4, o), nn.Conv2d(o, o, 3, padding=1)
        self.skip = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = self.c1(F.silu(self.n1(x)))
        scale, shift = self.t(t)[:, :, None, None].chunk(2, 1)
        return self.skip(x) + self.c2(F.silu(self.n2(y) * (1 + scale) + shift))


class Diffusion(nn.Module):
    """U-Net with time embedding, self- and cross-attention, skips by concatenation (their group norms lie over both parts)."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.i, self.d1, self.down, self.d2 = (
            nn.Conv2d(3, 16, 3, padding=1),
            TimeBlock(16, 16),
            nn.Conv2d(16, 16, 3, 2, 1),
            TimeBlock(16, 32),
        )
        self.norm, self.qkv, self.o = nn.GroupNorm(4, 32), nn.Conv2d(32, 96, 1), nn.Conv2d(32, 32, 1)
        self.cq, self.ck, self.cv, self.co = nn.Linear(32, 32), nn.Linear(24, 32), nn.Linear(24, 32), nn.Linear(32, 32)
        self.up, self.u1, self.out = nn.Conv2d(32, 24, 3, padding=1), TimeBlock(40, 16), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        angle = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(8, dtype=x.dtype) / 8)
        time = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        skip = self.d1(self.i(x), time)
        y = self.d2(self.down(skip), time)
        b, c, h, w = y.shape
        q, k, v = self.qkv(self.norm(y)).flatten(2).transpose(1, 2).chunk(3, -1)
        y = y + self.o(attend(q, k, v).transpose(1, 2).reshape(b, c, h, w))
        z = y.flatten(2).transpose(1, 2)
        y = (z + self.co(attend(self.cq(z), self.ck(words), self.cv(words)))).transpose(1, 2).reshape(b, c, h, w)
        y = self.up(F.interpolate(y, scale_factor=2.0))
        return self.out(self.u1(torch.cat([y, skip], 1), time))


class Dit(nn.Module):
    """Transformer blocks modulated by the time: shift, scale and gate of each part."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.patch, self.time = nn.Conv2d(3, d, 4, 4), nn.Sequential(nn.Linear(1, d), nn.SiLU())
        self.mod, self.qkv, self.o = nn.Linear(d, 6 * d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.f1, self.f2, self.out = nn.Linear(d, 64), nn.Linear(64, d), nn.Linear(d, 48)
        self.norm = nn.LayerNorm(d, elementwise_affine=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        s1, c1, g1, s2, c2, g2 = self.mod(self.time(t[:, None]))[:, None].chunk(6, -1)
        y = y + g1 * self.o(attend(*self.qkv(self.norm(y) * (1 + c1) + s1).chunk(3, -1)))
        return self.out(y + g2 * self.f2(F.gelu(self.f1(self.norm(y) * (1 + c2) + s2))))


class StyleBlock(nn.Module):
    """Weights modulated and demodulated for each example, one convolution group an example, noise, upsampling."""

    def __init__(self, i: int, o: int, style: int) -> None:
        super().__init__()
        self.affine, self.weight, self.noise, self.bias = (
            nn.Linear(style, i),
            nn.Parameter(torch.randn(o, i, 3, 3)),
            nn.Parameter(torch.zeros(1)),
            nn.Parameter(torch.zeros(o)),
        )
        self.i, self.o = i, o

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        b, _, h, wd = x.shape
        weight = self.weight[None] * self.affine(w)[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        y = F.conv2d(x.reshape(1, b * self.i, h, wd), weight.reshape(b * self.o, self.i, 3, 3), padding=1, groups=b)
        y = y.reshape(b, self.o, h, wd)
        return F.leaky_relu(y + self.bias[None, :, None, None], 0.2)


class StyleGan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Linear(16, 24), nn.LeakyReLU(0.2), nn.Linear(24, 24), nn.LeakyReLU(0.2))
        self.start, self.a, self.b = nn.Parameter(torch.randn(1, 32, 4, 4)), StyleBlock(32, 24, 24), StyleBlock(24, 16, 24)
        self.rgb1, self.rgb2 = nn.Conv2d(24, 3, 1), nn.Conv2d(16, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        w = self.map(z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt())
        y = self.a(self.start.expand(z.shape[0], -1, -1, -1), w)
        low = self.rgb1(y)
        y = self.b(F.interpolate(y, scale_factor=2.0, mode="bilinear"), w)
        return self.rgb2(y) + F.interpolate(low, scale_factor=2.0, mode="bilinear")


def vae(s: Net, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, spread = s.latent(torch.relu(s.encode(x)).flatten(1)).chunk(2, 1)
    z = mean + (0.5 * spread).exp() * 0.1
    return s.decode(torch.relu(s.widen(z)).unflatten(1, (16, 4, 4))), mean, spread


def vq(s: Net, x: Tensor) -> Tensor:
    y = s.encode(x).permute(0, 2, 3, 1)
    distance = y.square().sum(-1, keepdim=True) - 2 * y @ s.book.t() + s.book.square().sum(1)
    near = F.embedding(distance.argmin(-1), s.book)
    return s.decode((y + (near - y).detach()).permute(0, 3, 1, 2))


class Flow(nn.Module):
    """Affine coupling layers (RealNVP)."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        a, b = x.chunk(2, 1)
        for step in self.steps:
            scale, shift = step(a).chunk(2, 1)
            a, b = b * scale.tanh().exp() + shift, a
            total = total + scale.tanh().sum(1)
        return torch.cat([a, b], 1), total


# -- speech and sound ------------------------------------------------------------------------


class Conformer(nn.Module):
    """Half-step feed-forward, attention with relative positions, a gated depthwise convolution, half-step feed-forward."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.sub, self.inp = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU()), nn.Linear(16 * 10, d)
        self.f1, self.f2 = (nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 48), nn.SiLU(), nn.Linear(48, d)) for _ in range(2))
        self.norm, self.qkv, self.o, self.place = (
            nn.LayerNorm(d),
            nn.Linear(d, 3 * d),
            nn.Linear(d, d),
            nn.Linear(d, d, bias=False),
        )
        self.u, self.v = nn.Parameter(torch.zeros(4, d // 4)), nn.Parameter(torch.zeros(4, d // 4))
        self.cn, self.p1, self.dw, self.bn, self.p2 = (
            nn.LayerNorm(d),
            nn.Conv1d(d, 2 * d, 1),
            nn.Conv1d(d, d, 5, padding=2, groups=d),
            nn.BatchNorm1d(d),
            nn.Conv1d(d, d, 1),
        )
        self.last, self.head = nn.LayerNorm(d), nn.Linear(d, 12)
        self.register_buffer("positions", torch.randn(1, 23, d))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inp(self.sub(x[:, None]).transpose(1, 2).flatten(2))
        y = y + 0.5 * self.f1(y)
        q, k, v = (heads(p, 4) for p in self.qkv(self.norm(y)).chunk(3, -1))
        place = heads(self.place(self.positions), 4)
        content = (q + self.u[:, None]) @ k.transpose(-1, -2)
        shifted = (q + self.v[:, None]) @ place.transpose(-1, -2)
        b, h, t, n = shifted.shape
        shifted = F.pad(shifted, (1, 0)).view(b, h, n + 1, t)[:, :, 1:].reshape(b, h, t, n)[..., :t]
        y = y + self.o((((content + shifted) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))
        z = F.glu(self.p1(self.cn(y).transpose(1, 2)), 1)
        y = y + self.p2(F.silu(self.bn(self.dw(z)))).transpose(1, 2)
        return self.head(self.last(y + 0.5 * self.f2(y))).log_softmax(-1)


class Crnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(cbs(1, 16), nn.MaxPool2d(2), cbs(16, 32), nn.MaxPool2d((2, 1)))
        self.r, self.head = nn.LSTM(32 * 4, 24, 2, batch_first=True, bidirectional=True), nn.Linear(48, 11)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.head(self.r(y.permute(0, 3, 1, 2).flatten(2))[0]).log_softmax(-1)


class Demucs(nn.Module):
    """Strided convolutions with gates, an LSTM at the bottom, skips that are added after cropping."""

    def __init__(self) -> None:
        super().__init__()
        w = [1, 16, 32]
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv1d(w[i], w[i + 1], 8, 4), nn.ReLU(), nn.Conv1d(w[i + 1], 2 * w[i + 1], 1), nn.GLU(1))
            for i in range(2)
        )
        self.r, self.lin = nn.LSTM(32, 32, 2, bidirectional=True), nn.Linear(64, 32)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv1d(w[i + 1], 2 * w[i + 1], 3, padding=1), nn.GLU(1), nn.ConvTranspose1d(w[i + 1], w[i], 8, 4))
            for i in (1, 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for step in self.down:
            x = step(x)
            skips.append(x)
        x = self.lin(self.r(x.permute(2, 0, 1))[0]).permute(1, 2, 0)
        for number, step in enumerate(self.up):
            x = step(x + skips.pop()[..., : x.shape[-1]])
            x = torch.relu(x) if number == 0 else x
        return x


class WaveNet(nn.Module):
    def __init__(self, c: int = 24) -> None:
        super().__init__()
        self.inp = nn.Conv1d(1, c, 1)
        self.gates = nn.ModuleList(nn.Conv1d(c, 2 * c, 2, dilation=2**i) for i in range(3))
        self.res, self.skip = (
            nn.ModuleList(nn.Conv1d(c, c, 1) for _ in range(3)),
            nn.ModuleList(nn.Conv1d(c, 32, 1) for _ in range(3)),
        )
        self.o1, self.o2 = nn.Conv1d(32, 32, 1), nn.Conv1d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, total = self.inp(x), 0
        for gate, res, skip in zip(self.gates, self.res, self.skip, strict=True):
            f, g = gate(F.pad(y, (gate.dilation[0], 0))).chunk(2, 1)
            z = f.tanh() * g.sigmoid()
            y, total = y + res(z), total + skip(z)
        return self.o2(torch.relu(self.o1(torch.relu(total))))


class Reader(nn.Module):
    """A sequence-to-sequence model: GRU encoder, LSTM-cell decoder with additive attention, unrolled."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.enc = nn.Embedding(30, 16), nn.GRU(16, 24, batch_first=True, bidirectional=True)
        self.key, self.query, self.energy = nn.Linear(48, 20), nn.Linear(32, 20, bias=False), nn.Linear(20, 1, bias=False)
        self.cell, self.out = nn.LSTMCell(48 + 16, 32), nn.Linear(32, 30)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory = self.enc(self.emb(x))[0]
        keys, words = self.key(memory), self.emb(y)
        h, c, outs = x.new_zeros(x.shape[0], 32, dtype=keys.dtype), x.new_zeros(x.shape[0], 32, dtype=keys.dtype), []
        for t in range(y.shape[1]):
            weights = self.energy((keys + self.query(h)[:, None]).tanh()).softmax(1)
            h, c = self.cell(torch.cat([(weights * memory).sum(1), words[:, t]], 1), (h, c))
            outs.append(self.out(h))
        return torch.stack(outs, 1)


# -- physics, state spaces, other layers -----------------------------------------------------


class Spectral(nn.Module):
    def __init__(self, c: int, dims: int, modes: int = 4) -> None:
        super().__init__()
        self.dims, self.modes = dims, modes
        self.weight = nn.Parameter(torch.randn(c, c, *(modes,) * dims, 2) / c)

    def forward(self, x: Tensor) -> Tensor:
        m, axes = self.modes, tuple(range(-self.dims, 0))
        f = torch.fft.rfftn(x, dim=axes)
        w = torch.view_as_complex(self.weight)
        out = torch.zeros_like(f)
        if self.dims == 1:
            out[..., :m] = torch.einsum("bix,iox->box", f[..., :m], w)
        else:
            out[..., :m, :m] = torch.einsum("bixy,ioxy->boxy", f[..., :m, :m], w)
        return torch.fft.irfftn(out, s=x.shape[-self.dims :], dim=axes)


class Fno(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        self.lift, self.out = conv(1, 16, 1), nn.Sequential(conv(16, 24, 1), nn.GELU(), conv(24, 1, 1))
        self.k, self.w = nn.ModuleList(Spectral(16, dims) for _ in range(2)), nn.ModuleList(conv(16, 16, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for k, w in zip(self.k, self.w, strict=True):
            x = F.gelu(k(x) + w(x))
        return self.out(x)


class Mamba(nn.Module):
    """A selective state space: input-dependent steps, a scan written out, a gate."""

    def __init__(self, d: int = 24, inner: int = 32, n: int = 6) -> None:
        super().__init__()
        self.n, self.rank = n, 4
        self.norm, self.inp, self.conv = (
            nn.LayerNorm(d),
            nn.Linear(d, 2 * inner, bias=False),
            nn.Conv1d(inner, inner, 3, padding=2, groups=inner),
        )
        self.x, self.dt = nn.Linear(inner, self.rank + 2 * n, bias=False), nn.Linear(self.rank, inner)
        self.a, self.skip, self.out = (
            nn.Parameter(torch.rand(inner, n)),
            nn.Parameter(torch.ones(inner)),
            nn.Linear(inner, d, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[1]
        y, z = self.inp(self.norm(x)).chunk(2, -1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., :t]).transpose(1, 2)
        step, b, c = self.x(y).split([self.rank, self.n, self.n], -1)
        step = F.softplus(self.dt(step))
        decay = torch.exp(-step[..., None] * self.a.exp())
        drive = (step * y)[..., None] * b[:, :, None]
        state, outs = torch.zeros_like(drive[:, 0]), []
        for i in range(t):
            state = decay[:, i] * state + drive[:, i]
            outs.append((state * c[:, i, None]).sum(-1))
        return x + self.out((torch.stack(outs, 1) + y * self.skip) * F.silu(z))


class Rwkv(nn.Module):
    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(d), nn.Parameter(torch.rand(3, d))
        self.r, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.decay, self.bonus = nn.Parameter(torch.rand(d)), nn.Parameter(torch.rand(d))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        before = F.pad(y, (0, 0, 1, -1))
        r, k, v = (layer(y * m + before * (1 - m)) for layer, m in zip((self.r, self.k, self.v), self.mix, strict=True))
        above, below, outs = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), []
        for t in range(x.shape[1]):
            weight = (self.bonus + k[:, t]).exp()
            outs.append((above + weight * v[:, t]) / (below + weight))
            above, below = ((-self.decay.exp()).exp() * s + k[:, t].exp() * u for s, u in ((above, v[:, t]), (below, 1.0)))
        return x + self.o(r.sigmoid() * torch.stack(outs, 1))


class Kan(nn.Module):
    """Splines on edges: a basis for each input, coefficients (out, in, basis), and a plain path."""

    def __init__(self, widths: tuple[int, ...] = (8, 24, 16, 3)) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.base = nn.ModuleList(nn.Linear(i, o) for i, o in pairs)
        self.coef = nn.ParameterList(nn.Parameter(torch.randn(o, i, 6) * 0.3) for i, o in pairs)
        self.register_buffer("grid", torch.linspace(-2, 2, 6))

    def forward(self, x: Tensor) -> Tensor:
        for base, coef in zip(self.base, self.coef, strict=True):
            basis = torch.exp(-((x[..., None] - self.grid) ** 2))
            x = base(F.silu(x)) + torch.einsum("big,oig->bo", basis, coef)
        return x


class ConvLstm(nn.Module):
    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.gates, self.head, self.hidden = nn.Conv2d(3 + hidden, 4 * hidden, 3, padding=1), nn.Conv2d(hidden, 2, 1), hidden

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.hidden, *x.shape[-2:])
        for t in range(x.shape[1]):
            i, f, o, g = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


class Raft(nn.Module):
    """All-pairs correlation, looked up around the flow, refined by a convolutional GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.c = (
            nn.Sequential(cbs(3, 24, 3, 4), nn.Conv2d(24, 32, 1)),
            nn.Sequential(cbs(3, 24, 3, 4), nn.Conv2d(24, 40, 1)),
        )
        self.corr, self.zr, self.q, self.flow = (
            nn.Conv2d(64, 20, 1),
            nn.Conv2d(24 + 16 + 22, 48, 3, padding=1),
            nn.Conv2d(24 + 16 + 22, 24, 3, padding=1),
            nn.Conv2d(24, 2, 3, padding=1),
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        fa, fb = self.f(a), self.f(b)
        volume = torch.einsum("bchw,bcij->bhwij", fa, fb).flatten(3).permute(0, 3, 1, 2) / 32**0.5
        h, context = self.c(a).split([24, 16], 1)
        h, context = h.tanh(), context.relu()
        flow = h.new_zeros(h.shape[0], 2, *h.shape[-2:])
        for _ in range(2):
            inputs = torch.cat([context, torch.relu(self.corr(volume)), flow], 1)
            z, r = self.zr(torch.cat([h, inputs], 1)).sigmoid().chunk(2, 1)
            h = (1 - z) * h + z * self.q(torch.cat([r * h, inputs], 1)).tanh()
            flow = flow + self.flow(h)
        return flow


# -- transformers of other shapes ------------------------------------------------------------


class SamBlock(nn.Module):
    """Window attention with decomposed relative positions; heads are merged into the batch."""

    def __init__(self, d: int = 32, h: int = 4, window: int = 4) -> None:
        super().__init__()
        self.h, self.window = h, window
        self.patch, self.norm, self.qkv, self.o = nn.Conv2d(3, d, 4, 4), nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.rh, self.rw = nn.Parameter(torch.randn(2 * window - 1, d // h)), nn.Parameter(torch.randn(2 * window - 1, d // h))
        self.f1, self.f2, self.neck = nn.Linear(d, 64), nn.Linear(64, d), nn.Conv2d(d, 24, 1)
        self.register_buffer("places", (torch.arange(window)[:, None] - torch.arange(window)[None]) + window - 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        b, hh, ww, d = x.shape
        n, k = self.window, self.h
        y = self.norm(x).view(b, hh // n, n, ww // n, n, d).permute(0, 1, 3, 2, 4, 5).reshape(-1, n, n, d)
        q, key, v = (
            self.qkv(y)
            .reshape(y.shape[0], n * n, 3, k, -1)
            .permute(2, 0, 3, 1, 4)
            .reshape(3, y.shape[0] * k, n * n, -1)
            .unbind(0)
        )
        scores = (q * (d // k) ** -0.5) @ key.transpose(-2, -1)
        grid = q.reshape(-1, n, n, q.shape[-1])
        rel_h = torch.einsum("bhwc,hkc->bhwk", grid, self.rh[self.places])
        rel_w = torch.einsum("bhwc,wkc->bhwk", grid, self.rw[self.places])
        scores = (scores.view(-1, n, n, n, n) + rel_h[..., None] + rel_w[..., None, :]).view(-1, n * n, n * n)
        y = (scores.softmax(-1) @ v).view(-1, k, n, n, d // k).permute(0, 2, 3, 1, 4).reshape(-1, n, n, d)
        y = self.o(y).view(b, hh // n, ww // n, n, n, d).permute(0, 1, 3, 2, 4, 5).reshape(b, hh, ww, d)
        x = x + y
        return self.neck((x + self.f2(F.gelu(self.f1(x)))).permute(0, 3, 1, 2))


class MaskDecoder(nn.Module):
    """Tokens attend to an image and back; masks are products of upsampled features with what a small network makes of a token."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.tokens, self.a, self.b = nn.Parameter(torch.randn(3, d)), DecoderLayer(d), DecoderLayer(d)
        self.up = nn.Sequential(nn.ConvTranspose2d(d, 16, 2, 2), nn.GELU(), nn.ConvTranspose2d(16, 8, 2, 2), nn.GELU())
        self.hyper, self.iou = nn.Sequential(nn.Linear(d, 24), nn.ReLU(), nn.Linear(24, 8)), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b, _, h, w = x.shape
        memory = x.flatten(2).transpose(1, 2)
        t = self.a(self.tokens.expand(b, -1, -1), memory, self.tokens)
        memory = self.b(memory, t, memory)
        up = self.up(memory.transpose(1, 2).reshape(b, -1, h, w))
        return (self.hyper(t) @ up.flatten(2)).view(b, 3, 4 * h, 4 * w), self.iou(t[:, 0])


class Deberta(nn.Module):
    """Attention of content to content, content to place and place to content; heads in the batch, places repeated."""

    def __init__(self, d: int = 32, h: int = 4, span: int = 5) -> None:
        super().__init__()
        self.h, self.span = h, span
        self.emb, self.rel, self.q, self.k, self.v, self.o = (
            nn.Embedding(50, d),
            nn.Embedding(2 * span, d),
            *(nn.Linear(d, d) for _ in range(4)),
        )
        self.n1, self.f1, self.f2, self.n2, self.head = (
            nn.LayerNorm(d),
            nn.Linear(d, 48),
            nn.Linear(48, d),
            nn.LayerNorm(d),
            nn.Linear(d, 3),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        b, t, d = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(y.shape[0], y.shape[1], self.h, -1).permute(0, 2, 1, 3).reshape(-1, y.shape[1], d // self.h)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        rel = self.rel.weight[None]
        pk, pq = split(self.k(rel)).repeat(b, 1, 1), split(self.q(rel)).repeat(b, 1, 1)
        place = (torch.arange(t)[:, None] - torch.arange(t)[None] + self.span).clamp(0, 2 * self.span - 1)
        index = place[None].expand(b * self.h, -1, -1)
        scale = (3 * d // self.h) ** -0.5
        scores = (
            q @ k.transpose(-1, -2)
            + (q @ pk.transpose(-1, -2)).gather(-1, index)
            + (k @ pq.transpose(-1, -2)).gather(-1, index).transpose(-1, -2)
        )
        y = ((scores * scale).softmax(-1) @ v).view(b, self.h, t, -1).permute(0, 2, 1, 3).reshape(b, t, d)
        x = self.n1(x + self.o(y))
        return self.head(self.n2(x + self.f2(F.gelu(self.f1(x)))))


class Perceiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latents, self.inp = nn.Parameter(torch.randn(5, 32)), nn.Linear(6, 32)
        self.cross, self.inside, self.head = (
            DecoderLayer(),
            nn.TransformerEncoderLayer(32, 4, 48, batch_first=True),
            nn.Linear(32, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.cross(self.latents.expand(x.shape[0], -1, -1), self.inp(x), self.latents)
        return self.head(self.inside(y).mean(1))


def linear_attention(s: Net, x: Tensor) -> Tensor:
    q, k, v = (heads(p, 4) for p in s.qkv(x).chunk(3, -1))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    y = (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(-2, keepdim=True).transpose(-1, -2) + 1e-6)
    return s.o(y.transpose(1, 2).flatten(2))


def gmlp(s: Net, x: Tensor) -> Tensor:
    u, v = F.gelu(s.a(s.n(x))).chunk(2, -1)
    return x + s.b(u * (s.spatial(s.gn(v).transpose(1, 2)).transpose(1, 2)))


def axial(s: Net, x: Tensor) -> Tensor:
    y = s.inp(x)
    b, c, h, w = y.shape
    rows = y.permute(0, 2, 3, 1).reshape(b * h, w, c)
    y = (rows + s.o1(attend(*s.qkv1(rows).chunk(3, -1)))).view(b, h, w, c)
    columns = y.permute(0, 2, 1, 3).reshape(b * w, h, c)
    y = (columns + s.o2(attend(*s.qkv2(columns).chunk(3, -1)))).view(b, w, h, c)
    return s.out(y.permute(0, 3, 2, 1))


class Experts(nn.Module):
    """All experts computed, weighted by a softmax over the best two."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.w1, self.w2 = (
            nn.Linear(16, 4),
            nn.Parameter(torch.randn(4, 16, 24) * 0.2),
            nn.Parameter(torch.randn(4, 24, 16) * 0.2),
        )

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x)
        best = scores.topk(2, -1)
        weights = torch.zeros_like(scores).scatter(-1, best.indices, best.values.softmax(-1))
        y = torch.einsum("btd,edh->beth", x, self.w1).relu()
        return x + torch.einsum("beth,ehd,bte->btd", y, self.w2, weights)


# -- graphs, points, tables ------------------------------------------------------------------

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 5], [1, 2, 3, 4, 0, 3, 5, 1]])


def graph_sage(s: Net, x: Tensor) -> Tensor:
    source, target = s.edges
    for near, own in ((s.n1, s.o1), (s.n2, s.o2)):
        count = x.new_zeros(x.shape[0]).index_add(0, target, torch.ones_like(target, dtype=x.dtype)).clamp(min=1)
        mean = x.new_zeros(x.shape).index_add(0, target, x[source]) / count[:, None]
        x = torch.relu(near(mean) + own(x))
    return s.head(x)


def graph_attention(s: Net, x: Tensor) -> Tensor:
    source, target = s.edges
    y = s.w(x).unflatten(-1, (4, -1))
    score = F.leaky_relu((y * s.a1).sum(-1)[source] + (y * s.a2).sum(-1)[target], 0.2).exp()
    total = torch.zeros(x.shape[0], 4, dtype=x.dtype).index_add(0, target, score)
    message = y[source] * (score / (total[target] + 1e-9))[..., None]
    return s.head(torch.zeros_like(y).index_add(0, target, message).flatten(1).relu())


def point_net(s: Net, x: Tensor) -> Tensor:
    y = s.a(x)
    whole = s.b(y).amax(2)
    return s.head(torch.cat([y, whole[..., None].expand(-1, -1, y.shape[2])], 1))


def edge_conv(s: Net, x: Tensor) -> Tensor:
    distance = torch.cdist(x, x)
    near = distance.topk(3, -1, largest=False).indices
    picked = x.gather(1, near.flatten(1)[..., None].expand(-1, -1, 3)).unflatten(1, (-1, 3))
    edges = torch.cat([x[:, :, None].expand_as(picked), picked - x[:, :, None]], -1)
    return s.head(s.b(torch.relu(s.a(edges))).amax(2))


def deep_factors(s: Net, dense: Tensor, sparse: Tensor) -> Tensor:
    e = torch.stack([table(sparse[:, i]) for i, table in enumerate(s.tables)] + [s.bottom(dense)], 1)
    pairs = torch.bmm(e, e.transpose(1, 2))
    rows, columns = torch.triu_indices(4, 4, 1)
    return s.top(torch.cat([e.flatten(1), pairs[:, rows, columns]], 1))


class Nbeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU()) for _ in range(2))
        self.back, self.fore = (
            nn.ModuleList(nn.Linear(24, 12) for _ in range(2)),
            nn.ModuleList(nn.Linear(24, 4) for _ in range(2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for block, back, fore in zip(self.blocks, self.back, self.fore, strict=True):
            y = block(x)
            x, total = x - back(y), total + fore(y)
        return total


def gated_residual(s: Net, x: Tensor) -> Tensor:
    y = s.b(F.elu(s.a(x)))
    return s.head(s.norm(x + F.glu(s.gate(y), -1)))


def tab_net(s: Net, x: Tensor) -> Tensor:
    prior, total = torch.ones_like(x), 0
    for step, choose in ((s.s1, s.m1), (s.s2, s.m2)):
        mask = (choose(total if isinstance(total, Tensor) else s.start(x)) * prior).softmax(-1)
        prior, total = prior * (1.3 - mask), total + torch.relu(step(mask * x))
    return s.head(total)


def nerf(s: Net, x: Tensor) -> Tensor:
    waves = (x[..., None] * 2.0 ** torch.arange(4, dtype=x.dtype)).flatten(1)
    coded = torch.cat([x, waves.sin(), waves.cos()], 1)
    y = s.a(coded)
    y = s.b(torch.cat([y, coded], 1))
    return torch.cat([s.colour(y).sigmoid(), F.softplus(s.density(y))], 1)


# -- convolutional blocks --------------------------------------------------------------------


def split_attention(s: Net, x: Tensor) -> Tensor:
    y = s.body(s.stem(x)).unflatten(1, (2, -1))
    weights = s.up(torch.relu(s.down(y.sum(1).mean((2, 3), keepdim=True)))).unflatten(1, (2, -1)).softmax(1)
    return s.head((y * weights).sum(1))


def attention_module(s: Net, x: Tensor) -> Tensor:
    y = s.stem(x)
    both = s.fc(F.adaptive_avg_pool2d(y, 1)) + s.fc(F.adaptive_max_pool2d(y, 1))
    y = y * both.sigmoid()
    place = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
    return s.head(y * s.spatial(place).sigmoid())


def dynamic_convolution(s: Net, x: Tensor) -> Tensor:
    b = x.shape[0]
    y = s.stem(x)
    attention = s.route(y.mean((2, 3))).softmax(-1)
    weight = torch.einsum("bk,koihw->boihw", attention, s.weights).flatten(0, 1)
    y = F.conv2d(y.reshape(1, b * 16, *y.shape[2:]), weight, padding=1, groups=b)
    return s.head(torch.relu(y.reshape(b, 24, *y.shape[2:])))


def ghost(s: Net, x: Tensor) -> Tensor:
    y = s.stem(x)
    for first, cheap in ((s.p1, s.c1), (s.p2, s.c2)):
        z = torch.relu(first(y))
        y = torch.cat([z, cheap(z)], 1)
    return s.head(y)


def involution(s: Net, x: Tensor) -> Tensor:
    y = s.stem(x)
    b, _, h, w = y.shape
    kernel = s.span(torch.relu(s.reduce(y))).view(b, 4, 1, 9, h, w)
    patches = F.unfold(y, 3, padding=1).view(b, 4, 4, 9, h, w)
    return s.head((kernel * patches).sum(3).view(b, 16, h, w))


def shuffled(s: Net, x: Tensor) -> Tensor:
    y = s.stem(x)
    for branch in s.branches:
        left, right = y.chunk(2, 1)
        y = torch.cat([left, branch(right)], 1)
        y = y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return s.head(y)


def high_resolution(s: Net, x: Tensor) -> Tensor:
    fine = s.stem(x)
    coarse = s.down(fine)
    fine, coarse = s.f(fine), s.c(coarse)
    fine, coarse = torch.relu(fine + F.interpolate(s.cf(coarse), scale_factor=2.0)), torch.relu(coarse + s.fc(fine))
    return s.head(torch.cat([fine, F.interpolate(coarse, scale_factor=2.0, mode="bilinear")], 1))


def temporal_shift(s: Net, x: Tensor) -> Tensor:
    b, t = x.shape[:2]
    y = torch.relu(s.a(x.flatten(0, 1)))
    y = y.view(-1, t, *y.shape[1:])
    out = torch.zeros_like(y)
    out[:, :-1, :4] = y[:, 1:, :4]
    out[:, 1:, 4:8] = y[:, :-1, 4:8]
    out[:, :, 8:] = y[:, :, 8:]
    return s.head(torch.relu(s.b(out.flatten(0, 1))).mean((2, 3))).view(b, t, -1).mean(1)


def siamese(s: Net, a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(s.body(a), s.body(b), dim=1)


def neural_ode(s: Net, x: Tensor) -> Tensor:
    y = s.inp(x)
    for _ in range(4):
        y = y + 0.25 * s.b(torch.tanh(s.a(y)))
    return s.out(y)


def capsules(s: Net, x: Tensor) -> Tensor:
    u = s.primary(x).flatten(2).transpose(1, 2)
    u = (
        u
        * u.square().sum(-1, keepdim=True)
        / (1 + u.square().sum(-1, keepdim=True))
        * torch.rsqrt(u.square().sum(-1, keepdim=True) + 1e-7)
    )
    votes = torch.einsum("bpi,coi->bpco", u, s.votes)
    logits = votes.new_zeros(votes.shape[:3])
    for _ in range(2):
        v = (logits.softmax(2)[..., None] * votes).sum(1)
        logits = logits + (votes * v[:, None]).sum(-1)
    return v.square().sum(-1)


def _blocks(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(layer for i, o in pairwise(widths) for layer in (nn.Linear(i, o), nn.ReLU())))


R = torch.randn
KINDS: dict[str, Callable[[], Built]] = {
    "yolo (c2f, sppf, dfl)": lambda: (Yolo(), image()),
    "ssd": lambda: (Ssd(), image()),
    "fcos": lambda: (Fcos(), image()),
    "centernet": lambda: (Net(centre_net, body=nn.Sequential(cbs(3, 24, 3, 2), cbs(24, 48, 3, 2)), up=nn.Sequential(nn.ConvTranspose2d(48, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU()), heat=C(32, 4, 1), size=C(32, 2, 1), offset=C(32, 2, 1)), image()),
    "detr": lambda: (Detr(), image()),
    "rt-detr": lambda: (RtDetr(), image()),
    "diffusion u-net": lambda: (Diffusion(), (R(2, 3, 16, 16), torch.rand(2), R(2, 5, 24))),
    "diffusion transformer": lambda: (Dit(), (R(2, 3, 16, 16), torch.rand(2))),
    "stylegan": lambda: (StyleGan(), (R(2, 16),)),
    "vae": lambda: (Net(vae, encode=C(3, 16, 4, 4), latent=L(16 * 16, 16), widen=L(8, 256), decode=nn.ConvTranspose2d(16, 3, 4, 4)), image(16)),
    "vq-vae": lambda: (Net(vq, encode=nn.Sequential(cbs(3, 24, 3, 2), C(24, 8, 1)), book=R(12, 8), decode=nn.Sequential(C(8, 24, 3), nn.ReLU(), C(24, 3, 1))), image(16)),
    "normalizing flow": lambda: (Flow(), (R(3, 8),)),
    "conformer": lambda: (Conformer(), (R(2, 24, 20),)),
    "crnn (lstm)": lambda: (Crnn(), (R(2, 1, 16, 24),)),
    "demucs": lambda: (Demucs(), (R(2, 1, 212),)),
    "wavenet": lambda: (WaveNet(), (R(2, 1, 20),)),
    "seq2seq with attention": lambda: (Reader(), (torch.randint(0, 30, (2, 7)), torch.randint(0, 30, (2, 4)))),
    "fno 1d": lambda: (Fno(1), (R(2, 1, 32),)),
    "fno 2d": lambda: (Fno(2), (R(2, 1, 16, 16),)),
    "mamba": lambda: (Mamba(), (R(2, 6, 24),)),
    "rwkv": lambda: (Rwkv(), (R(2, 6, 24),)),
    "kan": lambda: (Kan(), (R(4, 8),)),
    "convlstm": lambda: (ConvLstm(), (R(2, 3, 3, 8, 8),)),
    "raft": lambda: (Raft(), (R(2, 3, 32, 32), R(2, 3, 32, 32))),
    "sam encoder": lambda: (SamBlock(), image(32)),
    "sam mask decoder": lambda: (MaskDecoder(), (R(2, 32, 6, 6),)),
    "deberta": lambda: (Deberta(), (torch.randint(0, 50, (2, 8)),)),
    "perceiver": lambda: (Perceiver(), (R(2, 9, 6),)),
    "linear attention": lambda: (Net(linear_attention, qkv=L(16, 96), o=L(32, 16)), (R(2, 7, 16),)),
    "gmlp": lambda: (Net(gmlp, n=nn.LayerNorm(16), a=L(16, 48), gn=nn.Identity(), spatial=L(7, 7), b=L(24, 16)), (R(2, 7, 16),)),
    "axial attention": lambda: (Net(axial, inp=C(3, 32, 3, padding=1), qkv1=L(32, 96), o1=L(32, 32), qkv2=L(32, 96), o2=L(32, 32), out=C(32, 4, 1)), image(8)),
    "experts, the best two": lambda: (Experts(), (R(2, 5, 16),)),
    "graphsage": lambda: (Net(graph_sage, edges=EDGES, n1=L(8, 24), o1=L(8, 24), n2=L(24, 16), o2=L(24, 16), head=L(16, 3)), (R(6, 8),)),
    "graph attention": lambda: (Net(graph_attention, edges=EDGES, w=L(8, 32), a1=R(4, 8), a2=R(4, 8), head=L(32, 3)), (R(6, 8),)),
    "pointnet": lambda: (Net(point_net, a=nn.Sequential(nn.Conv1d(3, 24, 1), nn.BatchNorm1d(24), nn.ReLU()), b=nn.Conv1d(24, 32, 1), head=nn.Conv1d(56, 5, 1)), (R(2, 3, 20),)),
    "edge convolution": lambda: (Net(edge_conv, a=L(6, 24), b=L(24, 16), head=L(16, 4)), (R(2, 10, 3),)),
    "dlrm": lambda: (Net(deep_factors, tables=nn.ModuleList(nn.Embedding(20, 16) for _ in range(3)), bottom=_blocks(8, 24, 16), top=nn.Sequential(_blocks(70, 24), L(24, 1))), (R(4, 8), torch.randint(0, 20, (4, 3)))),
    "n-beats": lambda: (Nbeats(), (R(3, 12),)),
    "gated residual network": lambda: (Net(gated_residual, a=L(16, 24), b=L(24, 20), gate=L(20, 32), norm=nn.LayerNorm(16), head=L(16, 3)), (R(3, 16),)),
    "tabnet": lambda: (Net(tab_net, start=L(10, 16), m1=L(16, 10), m2=L(16, 10), s1=L(10, 16), s2=L(10, 16), head=L(16, 3)), (R(4, 10),)),
    "nerf": lambda: (Net(nerf, a=_blocks(27, 32, 32), b=_blocks(59, 32), colour=L(32, 3), density=L(32, 1)), (R(5, 3),)),
    "split attention": lambda: (Net(split_attention, stem=cbs(3, 16), body=cbs(16, 48, groups=2), down=C(24, 12, 1), up=C(12, 48, 1), head=C(24, 4, 1)), image(8)),
    "channel and spatial attention": lambda: (Net(attention_module, stem=cbs(3, 32), fc=nn.Sequential(C(32, 8, 1), nn.ReLU(), C(8, 32, 1)), spatial=C(2, 1, 7, padding=3), head=C(32, 4, 1)), image(8)),
    "dynamic convolution": lambda: (Net(dynamic_convolution, stem=cbs(3, 16), route=L(16, 3), weights=R(3, 24, 16, 3, 3) * 0.1, head=C(24, 4, 1)), image(8)),
    "ghost modules": lambda: (Net(ghost, stem=cbs(3, 16), p1=C(16, 12, 1), c1=C(12, 12, 3, padding=1, groups=12), p2=C(24, 16, 1), c2=C(16, 16, 3, padding=1, groups=16), head=C(32, 4, 1)), image(8)),
    "involution": lambda: (Net(involution, stem=cbs(3, 16), reduce=C(16, 8, 1), span=C(8, 36, 1), head=C(16, 4, 1)), image(8)),
    "shuffle units": lambda: (Net(shuffled, stem=cbs(3, 16), branches=nn.ModuleList(nn.Sequential(cbs(8, 12, 1), cbs(12, 12, groups=12), cbs(12, 8, 1)) for _ in range(3)), head=C(16, 4, 1)), image(8)),
    "hrnet": lambda: (Net(high_resolution, stem=cbs(3, 16), down=cbs(16, 32, 3, 2), f=cbs(16, 16), c=cbs(32, 32), cf=C(32, 16, 1), fc=C(16, 32, 3, 2, 1), head=C(48, 4, 1)), image(16)),
    "temporal shift": lambda: (Net(temporal_shift, a=C(3, 16, 3), b=C(16, 24, 3), head=L(24, 5)), (R(2, 4, 3, 10, 10),)),
    "siamese": lambda: (Net(siamese, body=nn.Sequential(cbs(3, 16, 3, 2), cbs(16, 32, 3, 2), nn.Flatten(), L(32 * 16, 12))), (R(2, 3, 16, 16), R(2, 3, 16, 16))),
    "neural ode": lambda: (Net(neural_ode, inp=L(6, 24), a=L(24, 32), b=L(32, 24), out=L(24, 3)), (R(4, 6),)),
    "capsules": lambda: (Net(capsules, primary=C(3, 16, 5, 3), votes=R(4, 12, 16) * 0.3), image(16)),
}  # fmt: skip
