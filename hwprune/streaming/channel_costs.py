"""What each channel of the stream between blocks costs, so that the cheapest go.

A channel costs what the layers that read it lose of their outputs, as a share of these outputs, summed over all layers of all
blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune.common.telling import Tell, silent
from hwprune.second_order import hessian
from hwprune.streaming.block_layers import in_order, linears
from hwprune.streaming.blocks import block_of, leaving
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.streaming.input_sums import BlockInputs, statistics_of
from hwprune.streaming.sublayers import names_of


@torch.no_grad()
def channel_costs(
    folder: LanguageFolder,
    given: Sequence[Any],
    entered: HiddenStates,
    work: Path,
    dims: Mapping[str, tuple[int, ...]],
    windows: tuple[Sequence[int], Sequence[int]],
    ids: torch.Tensor,
    *,
    refitted: bool,
    kept: Sequence[int] | None = None,
    gone: Mapping[str, Sequence[int]] | None = None,
    step: Tell = silent,
) -> torch.Tensor:
    """What each channel of the stream costs: (width,) float64, the sum of shares of outputs that its readers would lose.

    Args:
        given: what the model passes to each block.
        entered: what reaches the first block; it is only read.
        work: folder for hidden states.
        dims: see `dims_of`.
        windows: those that are fitted, those that are held out.
        ids: (windows, tokens).
        refitted: will the other weights make up for it (optimal brain surgeon), or stay as they are?
        kept: blocks that count; None: all.
        gone: ``attention``, ``mlp`` -> blocks in which it does not count.
    """
    states = HiddenStates(work / "width", entered.shape, torch.float32)
    for window in range(len(entered)):
        states.write(window, entered.read(window))
    total = torch.zeros(entered.shape[-1], dtype=torch.float64)
    for index in range(folder.depth):
        step("finding the channels that matter least", index, folder.depth)
        block = block_of(folder, index, given[index])
        if kept is None or index in kept:
            inside = {name.removeprefix(f"{folder.blocks}.{index}."): places for name, places in dims.items()}
            left_out = tuple(f"{names_of(block.layer)[kind]}." for kind, places in (gone or {}).items() if index in places)
            counted = {name: places for name, places in inside.items() if not name.startswith(left_out)}
            total += _of_block(BlockInputs(block, states, *windows), counted, refitted=refitted)
        for window in range(len(states)):
            states.write(window, block(states.read(window)))
    total += _of_words(folder, ids, states)
    states.remove()
    return total


def _of_block(inputs: BlockInputs, dims: Mapping[str, tuple[int, ...]], *, refitted: bool) -> torch.Tensor:
    """(width,): what the readers in one block would lose. ``dims``: of the tensors that count, by their names in the block."""
    total = torch.zeros(inputs.entering.shape[-1], dtype=torch.float64)
    known = {linear.name for linear in linears(inputs.block)}
    for group in in_order(inputs.block, inputs.entering.read(0)):
        readers = [linear for linear in group if (0 if linear.transposed else 1) in dims.get(linear.name, ())]
        if readers:
            moments = statistics_of([*inputs.sums(readers[0])], readers[0].name).hessian(centred=False)[0]
            total += sum(_shares(linear.weight, moments, refitted=refitted) for linear in readers)
    # Routers and experts are no linear layers: each counts by its own weights at a channel, as what it is given isn't known.
    for name, parameter in inputs.block.layer.named_parameters():
        if name not in known and name in dims and parameter.ndim > 1:
            squares = parameter.detach().double().square()
            for dim in dims[name]:
                each = squares.sum(dim=[other for other in range(squares.ndim) if other != dim])
                total += each / each.sum().clamp(min=1e-30)
    return total


def _shares(weight: torch.Tensor, moments: torch.Tensor, *, refitted: bool) -> torch.Tensor:
    """(width,): the share of a layer's outputs (of their second moment) that is lost with each of its inputs."""
    w, moments = weight.double(), moments.double()
    whole = max(float(((w @ moments) * w).sum()), 1e-30)
    each = 1 / hessian.inverse(hessian.damp(moments)).diagonal() if refitted else moments.diagonal()
    return w.square().sum(dim=0) * each / whole


def _of_words(folder: LanguageFolder, ids: torch.Tensor, states: HiddenStates) -> torch.Tensor:
    """(width,): the same for the layer that makes the logits; nothing is fitted anew there."""
    ends: Any = folder.ends()
    head = ends.get_output_embeddings()
    squares: Any = 0.0
    rows = 0

    def called(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal squares, rows
        x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
        squares, rows = squares + x.T @ x, rows + len(x)

    handle = head.register_forward_pre_hook(called)
    for window in range(len(states)):
        leaving(ends, folder.blocks, ids[window : window + 1], states.read(window))
    handle.remove()
    return _shares(head.weight.detach(), squares / rows, refitted=False)
