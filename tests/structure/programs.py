"""Random small networks for fuzzing: a seed gives a module and its input. Used by the tests and by ``benchmarks/fuzz.py``."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor
SIZES = (4, 6, 8, 12)


class Program(nn.Module):
    """A list of steps; each reads tensors of a pool and appends one."""

    def __init__(self, steps: list[Callable[[list[Tensor]], Tensor]], layers: nn.ModuleList, weights: nn.ParameterList) -> None:
        super().__init__()
        self.steps, self.layers, self.weights = steps, layers, weights
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        pool = [x]
        for step in self.steps:
            pool.append(step(pool))
        return self.head(pool[-1].flatten(1))


class Builder:
    """Grows a program step by step, running each on an example."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        self.layers, self.weights = nn.ModuleList(), nn.ParameterList()
        self.steps: list[Callable[[list[Tensor]], Tensor]] = []
        shape = self.random.choice([(8,), (6, 8), (4, 6, 6), (3, 8, 8)])
        self.pool = [torch.randn(2, *shape)]

    def layer(self, module: nn.Module) -> nn.Module:
        self.layers.append(module)
        return module

    def weight(self, *shape: int) -> Callable[[], Tensor]:
        self.weights.append(nn.Parameter(torch.randn(*shape) * 0.4))
        place = len(self.weights) - 1
        return lambda: self.weights[place]

    def add(self, step: Callable[[list[Tensor]], Tensor]) -> bool:
        with torch.no_grad():
            try:
                result = step(self.pool)
            except (RuntimeError, ValueError, IndexError):
                return False
        if not 2 <= result.ndim <= 5 or result[0].numel() > 3000 or result[0].numel() < 2 or result.shape[0] != 2:
            return False
        self.steps.append(step)
        self.pool.append(result)
        return True

    def build(self, length: int) -> tuple[nn.Module, Tensor]:
        made = 0
        for _ in range(length * 8):
            if made == length:
                break
            made += self.grow()
        program = Program(self.steps, self.layers, self.weights)
        program.head = nn.Linear(self.pool[-1][0].numel(), 3)
        for module in program.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in program.parameters():
            if parameter.ndim == 1:
                parameter.data.uniform_(-0.5, 0.8)
        return program.eval(), self.pool[0][:1]

    def grow(self) -> bool:
        r = self.random
        # Mostly the newest tensor, so that programs become deep; sometimes an old one, so that they branch.
        i = len(self.pool) - 1 if r.random() < 0.75 else r.randrange(len(self.pool))
        x = self.pool[i]
        rank = x.ndim
        name = r.choice(STEPS)
        return getattr(self, "step_" + name)(i, x, rank)

    # -- layers ----------------------------------------------------------------------------------

    def step_linear(self, i: int, x: Tensor, rank: int) -> bool:
        layer = self.layer(nn.Linear(x.shape[-1], self.random.choice(SIZES), bias=self.random.random() < 0.7))
        return self.add(lambda p: layer(p[i]))

    def step_product(self, i: int, x: Tensor, rank: int) -> bool:
        w = self.weight(x.shape[-1], self.random.choice(SIZES))
        return self.add(lambda p: p[i] @ w())

    def step_conv(self, i: int, x: Tensor, rank: int) -> bool:
        if rank not in (3, 4):
            return False
        c = x.shape[1]
        groups = self.random.choice([g for g in (1, 1, 2, 3, c) if c % g == 0])
        out = groups * self.random.choice([1, 2, 3]) if groups > 1 else self.random.choice(SIZES)
        transposed = self.random.random() < 0.2
        kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d) if transposed else (nn.Conv1d, nn.Conv2d)
        k = self.random.choice([1, 3])
        layer = self.layer(kinds[rank - 3](c, out, k, padding=k // 2, groups=groups, bias=self.random.random() < 0.5))
        return self.add(lambda p: layer(p[i]))

    def step_norm(self, i: int, x: Tensor, rank: int) -> bool:
        which = self.random.choice(["batch", "layer", "group", "rms"])
        c = x.shape[1]
        if which == "batch" and rank in (2, 3, 4):
            layer = self.layer(nn.BatchNorm2d(c) if rank == 4 else nn.BatchNorm1d(c))
        elif which == "group" and rank > 2:
            layer = self.layer(nn.GroupNorm(self.random.choice([g for g in (1, 2, 3, 4) if c % g == 0]), c))
        elif which == "rms":
            layer = self.layer(nn.RMSNorm(x.shape[-1], eps=1e-5))
        else:
            layer = self.layer(nn.LayerNorm(x.shape[-1]))
        return self.add(lambda p: layer(p[i]))

    def step_prelu(self, i: int, x: Tensor, rank: int) -> bool:
        layer = self.layer(nn.PReLU(x.shape[1]))
        return self.add(lambda p: layer(p[i]))

    # -- element-wise ----------------------------------------------------------------------------

    def step_unary(self, i: int, x: Tensor, rank: int) -> bool:
        function = self.random.choice(
            [
                torch.relu,
                torch.tanh,
                torch.sigmoid,
                F.gelu,
                F.silu,
                torch.abs,
                torch.sin,
                torch.cos,
                lambda t: t * 0.5,
                lambda t: t + 0.3,
            ]
        )
        return self.add(lambda p: function(p[i]))

    def step_binary(self, i: int, x: Tensor, rank: int) -> bool:
        same = [j for j, y in enumerate(self.pool) if y.shape == x.shape and j != i]
        if not same:
            return False
        j = self.random.choice(same)
        function = self.random.choice([torch.add, torch.add, torch.mul, torch.sub, torch.maximum])
        return self.add(lambda p: function(p[i], p[j]))

    def step_residual(self, i: int, x: Tensor, rank: int) -> bool:
        a = self.layer(nn.Linear(x.shape[-1], self.random.choice(SIZES)))
        b = self.layer(nn.Linear(a.out_features, x.shape[-1]))
        return self.add(lambda p: p[i] + b(torch.relu(a(p[i]))))

    def step_scale(self, i: int, x: Tensor, rank: int) -> bool:
        dim = self.random.randrange(1, rank)
        w = self.weight(*(x.shape[d] if d == dim else 1 for d in range(1, rank)))
        function = self.random.choice([torch.mul, torch.add])
        return self.add(lambda p: function(p[i], w()))

    def step_gate(self, i: int, x: Tensor, rank: int) -> bool:
        dim = self.random.randrange(1, rank)
        return self.add(lambda p: p[i] * torch.sigmoid(p[i].mean(dim, keepdim=True)))

    def step_glu(self, i: int, x: Tensor, rank: int) -> bool:
        dims = [d for d in range(1, rank) if x.shape[d] % 2 == 0]
        if not dims:
            return False
        dim = self.random.choice(dims)
        return self.add(lambda p: F.glu(p[i], dim))

    # -- shapes ----------------------------------------------------------------------------------

    def step_split_dim(self, i: int, x: Tensor, rank: int) -> bool:
        dim = self.random.randrange(1, rank)
        factors = [f for f in (2, 3, 4) if x.shape[dim] % f == 0 and x.shape[dim] > f]
        if not factors:
            return False
        f = self.random.choice(factors)
        size = x.shape[dim]
        return self.add(lambda p: p[i].unflatten(dim, (f, size // f)))

    def step_merge(self, i: int, x: Tensor, rank: int) -> bool:
        if rank < 3:
            return False
        dim = self.random.randrange(1, rank - 1)
        shape = [*x.shape[1:dim], x.shape[dim] * x.shape[dim + 1], *x.shape[dim + 2 :]]
        return self.add(lambda p: p[i].reshape(p[i].shape[0], *shape))

    def step_permute(self, i: int, x: Tensor, rank: int) -> bool:
        order = list(range(1, rank))
        self.random.shuffle(order)
        return self.add(lambda p: p[i].permute(0, *order))

    def step_cat(self, i: int, x: Tensor, rank: int) -> bool:
        dim = self.random.randrange(1, rank)
        fits = [
            j
            for j, y in enumerate(self.pool)
            if y.ndim == rank and all(y.shape[d] == x.shape[d] for d in range(rank) if d != dim)
        ]
        j = self.random.choice(fits)
        return self.add(lambda p: torch.cat([p[i], p[j]], dim))

    def step_chunk(self, i: int, x: Tensor, rank: int) -> bool:
        dim = self.random.randrange(1, rank)
        n = self.random.choice([2, 3])
        if x.shape[dim] < n:
            return False
        how = self.random.choice(["one", "swap", "product"])
        if how == "one":
            which = self.random.randrange(2)
            return self.add(lambda p: p[i].chunk(n, dim)[which])
        if how == "swap":
            return self.add(lambda p: torch.cat(p[i].chunk(n, dim)[::-1], dim))
        return self.add(lambda p: math.prod(p[i].split(p[i].shape[dim] // n, dim)[:n]))

    def step_slice(self, i: int, x: Tensor, rank: int) -> bool:
        dim = self.random.randrange(1, rank)
        size = x.shape[dim]
        if size < 3:
            return False
        start, step = self.random.choice([(1, 1), (0, 1), (0, 2), (1, 2), (2, 1)])
        end = self.random.choice([size, size - 1, -1])
        return self.add(lambda p: p[i].movedim(dim, 0)[start:end:step].movedim(0, dim))

    def step_pad(self, i: int, x: Tensor, rank: int) -> bool:
        dim = self.random.randrange(1, rank)
        a, b = self.random.choice([(1, 2), (0, 2), (2, 2)])
        amounts = [0, 0] * (rank - 1 - dim) + [a, b]
        value = self.random.choice([0.0, 0.0, 0.5])
        return self.add(lambda p: F.pad(p[i], amounts, value=value))

    def step_expand(self, i: int, x: Tensor, rank: int) -> bool:
        if rank > 3:
            return False
        dim = self.random.randrange(1, rank + 1)
        n = self.random.choice([2, 3])

        def step(p: list[Tensor]) -> Tensor:
            y = p[i].unsqueeze(dim)
            return y.expand(*(n if d == dim else -1 for d in range(y.ndim)))

        return self.add(step)

    def step_repeat(self, i: int, x: Tensor, rank: int) -> bool:
        dim = self.random.randrange(1, rank)
        return self.add(lambda p: p[i].repeat_interleave(2, dim))

    def step_reorder(self, i: int, x: Tensor, rank: int) -> bool:
        dim = self.random.randrange(1, rank)
        which = self.random.choice(["roll", "flip", "index", "select"])
        if which == "roll":
            return self.add(lambda p: p[i].roll(1, dim))
        if which == "flip":
            return self.add(lambda p: p[i].flip(dim))
        order = torch.randperm(x.shape[dim])
        if which == "index":
            return self.add(lambda p: p[i].index_select(dim, order))
        return self.add(lambda p: p[i].select(dim, 1)) if rank > 2 else False

    def step_stack(self, i: int, x: Tensor, rank: int) -> bool:
        same = [j for j, y in enumerate(self.pool) if y.shape == x.shape]
        j, dim = self.random.choice(same), self.random.randrange(1, rank + 1)
        return self.add(lambda p: torch.stack([p[i], p[j]], dim)) if rank < 4 else False

    def step_shuffle(self, i: int, x: Tensor, rank: int) -> bool:
        if rank != 4:
            return False
        function = F.pixel_shuffle if x.shape[1] % 4 == 0 else F.pixel_unshuffle
        return self.add(lambda p: function(p[i], 2))

    def step_pool(self, i: int, x: Tensor, rank: int) -> bool:
        if rank != 4:
            return False
        function = self.random.choice(
            [
                lambda t: F.max_pool2d(t, 2),
                lambda t: F.avg_pool2d(t, 2),
                lambda t: F.adaptive_avg_pool2d(t, 1),
                lambda t: F.interpolate(t, scale_factor=2.0),
            ]
        )
        return self.add(lambda p: function(p[i]))

    # -- reductions and products -----------------------------------------------------------------

    def step_reduce(self, i: int, x: Tensor, rank: int) -> bool:
        dim, keep = self.random.randrange(1, rank), self.random.random() < 0.4
        function = self.random.choice([torch.sum, torch.mean, torch.amax, torch.softmax, torch.logsumexp])
        if function is torch.softmax:
            return self.add(lambda p: torch.softmax(p[i], dim))
        return self.add(lambda p: function(p[i], dim, keepdim=keep))

    def step_attention(self, i: int, x: Tensor, rank: int) -> bool:
        if rank != 3 or x.shape[-1] % 2:
            return False
        d, heads = x.shape[-1], 2
        qkv, out = self.layer(nn.Linear(d, 3 * d)), self.layer(nn.Linear(d, d))
        fused = self.random.random() < 0.5

        def step(p: list[Tensor]) -> Tensor:
            y = p[i]
            b, t, _ = y.shape
            q, k, v = qkv(y).reshape(b, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4).unbind(0)
            z = F.scaled_dot_product_attention(q, k, v) if fused else ((q @ k.transpose(-1, -2)) * 0.5).softmax(-1) @ v
            return y + out(z.transpose(1, 2).reshape(b, t, d))

        return self.add(step)

    def step_matmul(self, i: int, x: Tensor, rank: int) -> bool:
        if rank < 3:
            return False
        fits = [
            j for j, y in enumerate(self.pool) if y.ndim == rank and y.shape[:-2] == x.shape[:-2] and y.shape[-1] == x.shape[-1]
        ]
        j = self.random.choice(fits)
        return self.add(lambda p: 0.2 * p[i] @ p[j].transpose(-1, -2))

    def step_einsum(self, i: int, x: Tensor, rank: int) -> bool:
        if rank != 3:
            return False
        which = self.random.choice(["btd,de->bte", "btd,tde->bte", "btd,ht->bhd", "btd,edh->bteh"])
        t, d = x.shape[1:]
        e = self.random.choice(SIZES)
        shape = {"btd,de->bte": (d, e), "btd,tde->bte": (t, d, e), "btd,ht->bhd": (e, t), "btd,edh->bteh": (2, d, e)}[which]
        w = self.weight(*shape)
        return self.add(lambda p: torch.einsum(which, p[i], w()))


STEPS = [name.removeprefix("step_") for name in dir(Builder) if name.startswith("step_")]
STEPS += ["linear", "conv", "norm", "unary", "binary", "residual"]  # what real networks are mostly made of


def program(seed: int, length: int = 12) -> tuple[nn.Module, Tensor]:
    """A random network and an input of batch 1."""
    return Builder(seed).build(length)


def check(seed: int, length: int = 12) -> str | None:
    """What is wrong with the cuts of this program, or None."""
    import hwprune

    model, x = program(seed, length)
    model, x = model.double(), torch.randn(3, *x.shape[1:], dtype=torch.float64)
    graph = hwprune.trace(model, (x[:1],))
    generator = torch.Generator().manual_seed(seed)

    def keep(axis) -> Tensor:
        order = torch.randperm(axis.size, generator=generator)
        mask = torch.zeros(axis.size, dtype=torch.bool)
        mask[order[: int(torch.randint(1, axis.size + 1, (1,), generator=generator))]] = True
        return mask

    free = [axis for axis in graph.axes if axis.frozen is None]
    exact = {axis.name: keep(axis) for axis in free if axis.exact}
    with torch.no_grad():
        dense = model(x)
        if difference(graph.module(x), dense) > 1e-9:
            return "the traced model differs from the model"
        cut = graph.cut(exact)
        if (found := difference(cut(x), graph.mask(exact)(x))) > 1e-9:
            return f"cut differs from masked by {found:.1e}"
        every = {axis.name: keep(axis) for axis in free}
        small = graph.cut(every)
        small(x)
        counts = {name: int(mask.sum()) for name, mask in every.items()}
        if sum(p.numel() for p in small.parameters()) != graph.parameter_count(counts):
            return "the parameters are not as predicted"
        drop = [branch.name for branch in graph.branches]
        if drop and (found := difference(graph.cut(exact, drop)(x), graph.mask(exact, drop)(x))) > 1e-9:
            return f"dropped branches differ by {found:.1e}"
    return None


def difference(a: Tensor, b: Tensor) -> float:
    """Relative to the largest entry; both may be NaN or infinite in the same places."""
    finite = torch.isfinite(b)
    if not bool((torch.isfinite(a) == finite).all()):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    return float((a - b)[finite].abs().max()) / max(float(b[finite].abs().max()), 1e-30)
