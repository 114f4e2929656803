"""What reduces tokens in a cut PyTorch graph: which stay, taking them, merging them; and the nodes that do so."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from hwprune.structure.borders import MERGE, SHORTEST, Reduction
from hwprune.structure.torch.rules.table import read_argument


def attention_scores(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float | None, fixed: int, *, masked: bool
) -> torch.Tensor:
    """`scores` of a fused attention.

    Args:
        query, key: (batch, heads, tokens, size of a head).
        mask: as `scaled_dot_product_attention` takes it.
        scale: of the products; None: 1 / sqrt(size of a head).
    """
    if fixed:  # only class tokens are asked
        query = query[:, :, :fixed]
        mask = mask if mask is None or mask.ndim < 2 or mask.shape[-2] == 1 else mask[..., :fixed, :]
    products = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        products = products.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else products + mask
    return scores(products.softmax(dim=-1), fixed, masked=masked)


def scores(weights: torch.Tensor, fixed: int, *, masked: bool) -> torch.Tensor:
    """(batch, tokens): the attention that each token gets, the mean over the heads.

    From the class tokens where there are any (EViT, Liang et al. 2022), else from all tokens (PoWER-BERT, Goyal et al. 2020).
    Where some may be padding, only those are asked that get any attention themselves: padding gets none. What is masked from
    everything asks for nothing.

    Args:
        weights: (batch, heads, queries, keys), of which each row sums to 1.
        fixed: tokens in front that stay, a class token for example.
    """
    if fixed:
        weights = weights[:, :, :fixed]
    if masked:
        weights = weights.nan_to_num(0.0)
    first = weights.mean(dim=(1, 2))
    if fixed or not masked:
        return first
    asked = (first > 0).to(weights.dtype)
    return (asked[:, None, None] @ weights)[:, :, 0].mean(dim=1)


def staying(found: torch.Tensor, fixed: int, left: int) -> torch.Tensor:
    """(batch, fixed + left) int64: numbers of the tokens that stay, those in front first, the others by falling score."""
    # In runtimes the first one of equals stays. `topk` takes any; sorting keeps their order on CPUs, and ONNX has no other sort.
    chosen = found[:, fixed:].sort(dim=1, descending=True).indices[:, :left] + fixed
    front = torch.arange(fixed, device=found.device).expand(found.shape[0], fixed)
    return torch.cat([front, chosen], dim=1) if fixed else chosen


def taken(x: torch.Tensor, index: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """The entries at ``index``, (batch, left), along dims of ``x``, (batch, ...)."""
    for dim in dims:
        shape = [index.shape[0], *(1 for _ in x.shape[1:])]
        shape[dim] = index.shape[1]
        sizes = list(x.shape)
        sizes[dim] = index.shape[1]
        x = x.gather(dim, index.reshape(shape).expand(sizes))
    return x


def merged(x: torch.Tensor, fixed: int, gone: int) -> torch.Tensor:
    """(batch, tokens - gone, features): tokens merged as in ToMe (Bolya et al. 2023).

    Of every second token those go that are most like one of the others, into the mean with it. Likeness is the cosine of the
    tokens themselves (ToMe takes the keys, which a fused attention need not show). What goes where is a product with zeros and
    ones: TensorRT refuses a scatter that adds.
    """
    sources, targets = x[:, fixed::2], x[:, fixed + 1 :: 2]
    one = sources / sources.norm(dim=2, keepdim=True).clamp_min(SHORTEST)
    other = targets / targets.norm(dim=2, keepdim=True).clamp_min(SHORTEST)
    likeness, target = (one @ other.mT).max(dim=2)
    order = likeness.sort(dim=1, descending=True).indices
    leaving, rest = order[:, :gone], order[:, gone:]
    places = torch.arange(targets.shape[1], device=x.device)
    one_hot = (target.gather(1, leaving)[:, None, :] == places[:, None]).to(x.dtype)  # (batch, targets, leaving)
    sums = targets + one_hot @ taken(sources, leaving, (1,))
    means = sums / (1 + one_hot.sum(dim=2, keepdim=True))
    return torch.cat([x[:, :fixed], taken(sources, rest, (1,)), means], dim=1)


def reduce_tokens(
    graph: fx.Graph, attention: fx.Node, reduction: Reduction, crossing: Sequence[tuple[fx.Node, tuple[int, ...], bool]]
) -> None:
    """Replace the nodes at which tensors cross a border by what reduces their tokens.

    Args:
        attention: the attention before the border: a fused one, or the softmax (batch, heads, queries, keys).
        crossing: node, its dims that are tokens, and whether it is the border's own tensor.
    """
    (main,) = [node for node, _, own in crossing if own]
    fixed = reduction.fixed
    with graph.inserting_before(main):
        if reduction.form == MERGE:
            new = graph.call_function(merged, (main.args[0], fixed, reduction.arriving - reduction.left))
        elif attention.target is torch.ops.aten.scaled_dot_product_attention.default:
            given = [read_argument(attention, name) for name in ("query", "key", "attn_mask", "scale")]
            found = graph.call_function(attention_scores, (*given, fixed), {"masked": reduction.masked})
        else:
            found = graph.call_function(scores, (attention, fixed), {"masked": reduction.masked})
        if reduction.form != MERGE:
            index = graph.call_function(staying, (found, fixed, reduction.left))
    for node, dims, own in crossing:
        if reduction.form != MERGE:
            with graph.inserting_before(node):
                new = graph.call_function(taken, (node.args[0], index, dims))
        elif not own:
            continue
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
