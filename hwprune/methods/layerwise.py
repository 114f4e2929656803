"""One layer at a time: what to keep, and the best weights for what is kept, measured by the change of the layer's own outputs.

Compensations of one layer, from the dense model's Gram matrices:

``obs``
    the update of the optimal brain surgeon: for kept columns the exact least squares (every greedy trace ends there), for
    masks with a support of its own in each row SparseGPT's sweep, which lets weights make up only for those to their left;
``lstsq``
    exact least squares for masks too: a factorisation for each row.

One file because axes and masks share the solution, its error and the statistics that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from hwprune.errors import UsageError
from hwprune.layers.part import Part, grouped, readers
from hwprune.layers.statistics import LayerStatistics
from hwprune.patterns import Pattern
from hwprune.patterns.base import keep_highest, removed_count
from hwprune.second_order import exact, hessian, least_squares, sparsegpt, structured

NONE, OBS, LSTSQ = "none", "obs", "lstsq"
EXACT_LIMIT = 3e11
"""Multiply-accumulates (rows * columns^3 / 3) up to which a matrix gets exact OBS at all; `exact_seconds` tells how long."""
EXACT_SPEED = 2.5e8
"""Multiply-accumulates a second of exact OBS: 2.4e8 on one core of a busy x86 machine, where memory is what it waits for."""


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """New weights of a layer.

    Attributes:
        weight: (out, kept in / G, *kernel), or the whole shape if it was masked.
        shift: (out,), what the layer's outputs have to be raised by so that their mean stays; None if nothing can be added.
        error: change of the outputs, as a share of their variance (of their second moment, if nothing can be added).
    """

    weight: torch.Tensor
    shift: torch.Tensor | None
    error: float


def _known(part: Part) -> LayerStatistics:
    if part.statistics is None or part.statistics.covariance is None:
        raise UsageError(
            f"layer {part.parameter} has no Gram matrix: either the calibration data never reaches it, or it was not asked for"
        )
    return part.statistics


def _size(h: torch.Tensor, w: torch.Tensor) -> float:
    """Variance of the outputs (their second moment if ``h`` is not centred), summed over outputs."""
    return max(float(((w @ h) * w).sum()), 1e-30)


# -- axes ------------------------------------------------------------------------------------


def axis_keeps(parts: Sequence[Part], levels: Sequence[float | None]) -> list[torch.Tensor]:
    """Keep masks of an axis from one greedy trace over all layers that read it."""
    consumers = []
    for part in readers(parts):
        statistics = _known(part)
        plain = statistics.hessian(centred=part.centred)
        w = grouped(part.tensor.detach().double(), part.groups)
        scale = 1 / _size(plain, w)
        columns = part.columns
        consumers += [structured.Consumer(h, rows, columns, scale) for h, rows in zip(hessian.damp(plain), w, strict=True)]
    if not consumers:
        raise UsageError("method obs: no linear or convolution layer reads this axis")
    n = parts[0].size
    removed = [removed_count(n, level, "obs") for level in levels]
    order, _ = structured.removal_order(consumers, n - max(removed))
    keeps = []
    for count in removed:
        keep = torch.ones(n, dtype=torch.bool)
        keep[order[:count]] = False
        keeps.append(keep)
    return keeps


def kept_columns(part: Part, keeps: Sequence[torch.Tensor]) -> list[Solution]:
    """Least squares of a layer that reads an axis, for each keep mask (n,) of the axis."""
    kernel = part.kernel
    inner = part.tensor.shape[1]
    kept = []
    for keep in keeps:
        channels = torch.ones(inner, dtype=torch.bool)
        channels[part.positions[~keep].reshape(-1)] = False
        kept.append(channels)
    statistics = _known(part)
    plain = statistics.hessian(centred=part.centred)
    w = grouped(part.tensor.detach().double(), part.groups)
    damped = hessian.damp(plain)
    whole = _size(plain, w)
    nested = _nested_order(kept)
    result = []
    by_group = [
        _levels(h, rows, kept, nested, kernel) for h, rows in zip(damped, w, strict=True)
    ]  # group -> level -> (out / G, kept columns)
    for place, channels in enumerate(kept):
        columns = channels.repeat_interleave(kernel)
        new = torch.zeros_like(w)
        for group, levels in enumerate(by_group):
            new[group][:, columns] = levels[place]
        result.append(_solution(part, statistics, plain, w, new, whole, channels))
    return result


def _nested_order(kept: Sequence[torch.Tensor]) -> list[int] | None:
    """Order of the levels from most to fewest channels if each is part of the one before, or None."""
    order = sorted(range(len(kept)), key=lambda i: -int(kept[i].sum()))
    for before, after in pairwise(order):
        if bool((kept[after] & ~kept[before]).any()):
            return None
    return order


def _levels(
    h: torch.Tensor, w: torch.Tensor, kept: Sequence[torch.Tensor], nested: list[int] | None, kernel: int
) -> list[torch.Tensor]:
    """Weights (out, kept columns) of every level, columns in their own order."""
    masks = [channels.repeat_interleave(kernel) for channels in kept]
    if nested is None or len(kept) == 1:
        return [least_squares.on_columns(h, w, mask) for mask in masks]
    # How many levels keep a column: sorted by that, every level is a prefix.
    times = torch.stack(masks).sum(dim=0)
    order = torch.argsort(times, descending=True, stable=True)
    counts = [int(mask.sum()) for mask in masks]
    weights, _ = least_squares.nested(h, w, order, counts)
    return [weight[:, torch.argsort(order[:count])] for weight, count in zip(weights, counts, strict=True)]


def _solution(
    part: Part,
    statistics: LayerStatistics,
    plain: torch.Tensor,
    w: torch.Tensor,
    new: torch.Tensor,
    whole: float,
    channels: torch.Tensor | None,
) -> Solution:
    """A solution from (G, out / G, d) weights, old and new."""
    change = new - w
    error = float(((change @ plain) * change).sum()) / whole
    shift = None
    if part.centred and statistics.mean is not None:
        shift = -(change @ statistics.mean.double()[:, :, None]).reshape(-1)
    weight = new.reshape(part.tensor.shape)
    if channels is not None:
        weight = weight[:, channels]
    dtype = part.tensor.dtype
    return Solution(weight.to(dtype), None if shift is None else shift.to(dtype), max(0.0, error))


def removal_error(part: Part, keep: torch.Tensor, *, of_axis: bool) -> float:
    """Error of a layer if what is removed is just removed, with only the mean of the outputs kept (if something can be added)."""
    statistics = _known(part)
    plain = statistics.hessian(centred=part.centred)
    w = grouped(part.tensor.detach().double(), part.groups)
    if of_axis:
        channels = torch.ones(part.tensor.shape[1], dtype=torch.bool)
        channels[part.positions[~keep].reshape(-1)] = False
        gone = w * ~channels.repeat_interleave(part.kernel)
    else:
        gone = w * ~grouped(keep, part.groups)
    return float(((gone @ plain) * gone).sum()) / _size(plain, w)


# -- masks -----------------------------------------------------------------------------------


def _sweep_order(part: Part, pattern: Pattern) -> torch.Tensor:
    """Columns of a group in the order in which the pattern's blocks are consecutive: kernel position by kernel position."""
    d = part.tensor.shape[1] * part.kernel
    if part.kernel == 1 or (pattern.group is None and pattern.block == (1, 1)):
        return torch.arange(d)
    return torch.arange(d).reshape(-1, part.kernel).T.reshape(-1)


def swept_keep(part: Part, pattern: Pattern, level: float | None) -> torch.Tensor:
    """SparseGPT's own mask."""
    return _sweep(part, pattern, level, None)[1]


def _sweep(
    part: Part, pattern: Pattern | None, level: float | None, keep: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(new weights (G, out / G, d), keep mask of the weight's shape, undamped Hessians, dense weights)."""
    statistics = _known(part)
    plain = statistics.hessian(centred=part.centred)
    w = grouped(part.tensor.detach(), part.groups)
    order = torch.arange(w.shape[2]) if pattern is None else _sweep_order(part, pattern)
    factor = hessian.reverse_factor(hessian.damp(plain)[:, order][:, :, order])
    if keep is not None:
        new, mask = sparsegpt.sweep(factor, w[:, :, order], keep=grouped(keep, part.groups)[:, :, order])
    else:
        assert pattern is not None
        if reason := pattern.inadmissible(part.tensor.shape):
            raise UsageError(f"pattern {pattern.name}: {reason}")
        if pattern.group is not None:
            if level is not None and pattern.fixed_sparsity is not None and abs(level - pattern.fixed_sparsity) > 1e-9:
                raise UsageError(f"pattern {pattern.name} removes {pattern.fixed_sparsity:g} of the weights, not {level:g}")
            new, mask = sparsegpt.sweep(factor, w[:, :, order], _group_choice(pattern.group), group=pattern.group[1])
        else:
            width = max(1, sparsegpt.BLOCK // pattern.block[1]) * pattern.block[1]
            choose = _Budget(pattern, level, tuple(w.shape))
            new, mask = sparsegpt.sweep(factor, w[:, :, order], choose, block=width)
    back = torch.argsort(order)
    return new[:, :, back].double(), mask[:, :, back].reshape(part.tensor.shape), plain, w.double()


def _group_choice(group: tuple[int, int]) -> sparsegpt.Choose:
    def choose(scores: torch.Tensor, _start: int) -> torch.Tensor:
        return keep_highest(scores, group[1] - group[0])

    return choose


class _Budget:
    """Chooses a block of columns so that the counts of the whole layer come out exact."""

    def __init__(self, pattern: Pattern, level: float | None, shape: tuple[int, ...]) -> None:
        self.pattern = pattern
        self.g, self.rows, self.d = shape
        r, c = pattern.block
        if pattern.scope == "row":
            self.total, self.per = removed_count(self.d, level, pattern.name), self.d
        else:
            blocks = self.g * self.rows * self.d // (r * c)
            self.total, self.per = removed_count(blocks, level, pattern.name), self.d
        self.done = 0

    def __call__(self, scores: torch.Tensor, start: int) -> torch.Tensor:
        g, rows, columns = scores.shape
        due = round(self.total * (start + columns) / self.per) - self.done
        self.done += due
        if self.pattern.scope == "row":
            return keep_highest(scores, due)
        r, c = self.pattern.block
        if (r, c) == (1, 1):
            return keep_highest(scores.reshape(-1), due).reshape(scores.shape)
        sums = scores.reshape(g * rows // r, r, columns // c, c).sum(dim=(1, 3))
        keep = keep_highest(sums.reshape(-1), due).reshape(sums.shape)
        return keep[:, None, :, None].expand(-1, r, -1, c).reshape(scores.shape)


def exact_keep(part: Part, pattern: Pattern, level: float | None) -> torch.Tensor:
    """OBC's own mask; SparseGPT's for layers beyond `EXACT_LIMIT`."""
    return exact_keeps(part, pattern, [level])[0]


def exact_keeps(part: Part, pattern: Pattern, levels: Sequence[float | None]) -> list[torch.Tensor]:
    """OBC's own masks, all levels from one greedy trace; SparseGPT's for layers beyond `EXACT_LIMIT`."""
    g = part.groups
    d = part.tensor.shape[1] * part.kernel
    r, c = pattern.block
    if not _is_exact(part, pattern):
        return [swept_keep(part, pattern, level) for level in levels]
    if reason := pattern.inadmissible(part.tensor.shape):
        raise UsageError(f"pattern {pattern.name}: {reason}")
    damped = hessian.damp(_known(part).hessian(centred=part.centred))
    w = grouped(part.tensor.detach().double(), g)
    columns = _sweep_order(part, pattern).reshape(-1, c)
    n = len(columns)
    limits = None
    if pattern.group is not None:
        kept, m = pattern.group
        limits = exact.KeepLimits(m, m - kept)
    steps = _steps(n, pattern, levels)
    traces = [exact.removal_orders(h, rows.reshape(-1, r, d), columns, steps, limits) for h, rows in zip(damped, w, strict=True)]
    order = torch.cat([trace[0] for trace in traces])
    losses = torch.cat([trace[1] for trace in traces])
    masks = []
    for level in levels:
        if pattern.scope == "layer" and pattern.group is None:
            keep = exact.choose(order, losses, removed_count(order.shape[0] * n, level, pattern.name))
        else:
            first = order[:, : _steps(n, pattern, [level])]
            keep = torch.ones(len(order), n, dtype=torch.bool).scatter(1, first, False)
        whole = torch.ones(len(order), d, dtype=torch.bool)
        whole[:, columns.reshape(-1)] = keep.repeat_interleave(c, dim=1)
        masks.append(whole.repeat_interleave(r, dim=0).reshape(part.tensor.shape))
    return masks


def _steps(n: int, pattern: Pattern, levels: Sequence[float | None]) -> int:
    """Removals that a trace over n blocks of columns needs for these levels."""
    if pattern.group is not None:
        kept, m = pattern.group
        return n // m * (m - kept)
    if pattern.scope == "row":
        return max(removed_count(n, level, pattern.name) for level in levels)
    return n


def _is_exact(part: Part, pattern: Pattern) -> bool:
    out, d = part.tensor.shape[0], part.tensor.shape[1] * part.kernel
    rows = pattern.block[0]
    return out / rows * d**3 / 3 <= EXACT_LIMIT and not (out // part.groups) % rows


def exact_seconds(part: Part, pattern: Pattern, levels: Sequence[float | None]) -> float:
    """About how long `exact_keeps` takes; 0 where the sweep takes its place, which is quick."""
    if not _is_exact(part, pattern) or pattern.inadmissible(part.tensor.shape):
        return 0.0
    out, d = part.tensor.shape[0], part.tensor.shape[1] * part.kernel
    rows, width = pattern.block
    removed = _steps(d // width, pattern, levels) * width
    # Tell t multiplies t columns of the downdates' factor, d rows each.
    return out / rows * d * removed**2 / 2 / EXACT_SPEED


def masked(part: Part, keep: torch.Tensor, compensation: str, pattern: Pattern | None = None) -> Solution:
    """New weights for a mask of the weight's shape that stands already.

    ``pattern``: the one that the mask was made for; it decides on the order of the sweep.
    """
    if compensation == LSTSQ:
        statistics = _known(part)
        plain = statistics.hessian(centred=part.centred)
        w = grouped(part.tensor.detach().double(), part.groups)
        masks = grouped(keep, part.groups)
        new = torch.stack(
            [least_squares.on_mask(h, rows, mask) for h, rows, mask in zip(hessian.damp(plain), w, masks, strict=True)]
        )
    else:
        new, _, plain, w = _sweep(part, pattern, None, keep)
        statistics = _known(part)
    return _solution(part, statistics, plain, w, new, _size(plain, w), None)
