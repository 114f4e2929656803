"""A cut block's layers fitted anew, in the order in which they run, to what the dense ones make of the dense model's inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hwprune.streaming import targets
from hwprune.streaming.block_layers import BlockLinear, in_order, linears
from hwprune.streaming.input_sums import BlockInputs, cross_of, statistics_of
from hwprune.streaming.width import Width


@torch.no_grad()
def refit(inputs: BlockInputs, wanted: Callable[[str], bool], width: Width | None = None) -> list[str]:
    """Change the weights of the cut block; returns the names of those that were changed.

    Args:
        inputs: the cut block, and the dense one beside it. Layers are fitted whose outputs are all there still, or are the dense
            layer's own rows.
        wanted: may the layer of this weight be changed?
        width: which channels of the stream between blocks the cut block has; None: all that the dense one has.
    """
    assert inputs.dense_block is not None
    dense = {linear.name: linear for linear in linears(inputs.dense_block)}
    changed = []
    for group in in_order(inputs.block, inputs.entering.read(0)):
        rows = {linear.name: _rows(linear, dense[linear.name], width) if wanted(linear.name) else None for linear in group}
        if all(kept is None for kept in rows.values()):
            continue
        sums = inputs.sums(group[0])
        fitted, held, whole = (
            (statistics_of(part, group[0].name).hessian(centred=False)[0], cross_of(part))
            for part in ([sums[0]], [sums[1]], [*sums])
        )
        for linear in group:
            kept = rows[linear.name]
            if kept is None:
                continue
            aim, now = dense[linear.name].weight[kept], linear.weight
            ridge = targets.best_ridge(now, aim, fitted, held)
            if ridge is not None:
                linear.write(targets.moved(now, aim, *whole, ridge))
                changed.append(linear.name)
    return changed


def _rows(now: BlockLinear, dense: BlockLinear, width: Width | None) -> torch.Tensor | None:
    if width is not None and (1 if now.transposed else 0) in width.dims.get(now.name, ()):
        return width.kept
    return kept_rows(now.weight, dense.weight)


def kept_rows(now: torch.Tensor, dense: torch.Tensor) -> torch.Tensor | None:
    """Which of the dense layer's outputs the cut layer makes; None: that can't be told from its weights."""
    if len(now) == len(dense):
        return torch.arange(len(dense))
    if now.shape[1] != dense.shape[1]:
        return None
    places = {row.numpy().tobytes(): place for place, row in enumerate(dense)}
    found = [places.get(row.numpy().tobytes()) for row in now]
    if None in found or len(set(found)) < len(found) or len(places) < len(dense):
        return None
    return torch.tensor([place for place in found if place is not None])
