"""Transformers for tests of fewer tokens, and what their outputs must be, computed example by example and token by token."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-norm attention and an MLP, with projections of their own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.normal_(self.q.weight, std=0.7)  # so that attention prefers some tokens to others
        nn.init.normal_(self.k.weight, std=0.7)

    def parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = self.norm1(x)
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (layer(y).reshape(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return q, k, v

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = self.parts(x)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o(y.transpose(1, 2).reshape(x.shape))
        return self.mlp(x)

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return z


class Vision(nn.Module):
    """Patches of an image, with a class token or the mean of all."""

    def __init__(self, *, class_token: bool, blocks: int = 3, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.first = nn.Parameter(torch.randn(1, 1, width)) if class_token else None
        self.position = nn.Parameter(torch.randn(1, 16 + class_token, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.first is not None:
            x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1)
        return x + self.position

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        y: torch.Tensor = self.head(x.mean(dim=1) if self.first is None else x[:, 0])
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.answer(x)


class Text(nn.Module):
    """Words with a padding mask; the mean over those that are no padding."""

    def __init__(self, blocks: int = 2, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(40, width), nn.Embedding(32, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.head = nn.Linear(width, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        wide = (mask[:, None, None, :] > 0).expand(-1, 1, ids.shape[1], -1)
        for block in self.blocks:
            x = block(x, wide)
        weight = mask[:, :, None].to(x.dtype)
        y: torch.Tensor = self.head((x * weight).sum(dim=1) / weight.sum(dim=1))
        return y


def attention_of(block: Block, x: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
    """(heads, queries, keys) of one example's tokens (tokens, width)."""
    q, k, _ = block.parts(x[None])
    weights = torch.empty(block.heads, len(x), len(x))
    for head in range(block.heads):
        for i in range(len(x)):
            products = torch.stack([(q[0, head, i] * k[0, head, j]).sum() / q.shape[-1] ** 0.5 for j in range(len(x))])
            if present is not None:
                products[~present] = -torch.inf
            weights[head, i] = torch.exp(products - products.max()) / torch.exp(products - products.max()).sum()
    return weights


def dropped_by_hand(weights: torch.Tensor, fixed: int, left: int) -> list[int]:
    """Which tokens of one example stay."""
    mean = weights.mean(dim=0)
    if fixed:
        score = mean[0]
    else:  # by all tokens that get any attention: none is padding
        score = torch.zeros(len(mean))
        for i in range(len(mean)):
            if any(float(mean[j, i]) > 0 for j in range(len(mean))):
                score += mean[i]
    order = sorted(range(fixed, len(mean)), key=lambda j: -float(score[j]))
    return sorted([*range(fixed), *order[:left]])


def merged_by_hand(x: torch.Tensor, fixed: int, gone: int) -> list[torch.Tensor]:
    """The tokens of one example behind a merging, in any order."""
    free = list(range(fixed, len(x)))
    sources, targets = free[::2], free[1::2]
    best = {}
    for s in sources:
        likeness = [float(F.cosine_similarity(x[s], x[t], dim=0)) for t in targets]
        best[s] = (max(likeness), targets[likeness.index(max(likeness))])
    leaving = sorted(sources, key=lambda s: -best[s][0])[:gone]
    groups = {t: [x[t]] for t in targets}
    for s in leaving:
        groups[best[s][1]].append(x[s])
    kept = [x[i] for i in range(fixed)] + [x[s] for s in sources if s not in leaving]
    return kept + [torch.stack(members).mean(dim=0) for members in groups.values()]
