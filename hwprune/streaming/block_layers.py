"""The linear layers of a block: in which order they run, and what each is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hwprune.layers.units import Unit, matrix_unit
from hwprune.streaming.blocks import DecoderBlock
from hwprune.structure.model_graph import Matrix


@dataclass(frozen=True, slots=True, eq=False)
class BlockLinear:
    """A layer that multiplies by a matrix.

    Attributes:
        name: of its weight in the block.
        transposed: the weight is (in, out), as in transformers' Conv1D.
    """

    name: str
    module: nn.Module
    transposed: bool

    @property
    def weight(self) -> torch.Tensor:
        """(out, in), detached."""
        found = self.module.get_parameter("weight").detach()
        return found.t() if self.transposed else found

    def write(self, new: torch.Tensor) -> None:
        """Put (out, in) weights in the place of those that are there."""
        self.module.get_parameter("weight").data.copy_(new.t() if self.transposed else new)

    def unit(self, weight: torch.Tensor | None = None) -> Unit:
        """What is pruned: the layer's weight, or another (out, in) in its place."""
        rows = self.weight if weight is None else weight
        matrix = Matrix(self.name, "linear", tuple(rows.shape), 1, self.transposed)
        return matrix_unit(matrix, matrix.rows(rows))


def linears(block: DecoderBlock) -> list[BlockLinear]:
    """All of them, in the order of the block's modules."""
    found = []
    for name, module in block.layer.named_modules():
        weight = module._parameters.get("weight")
        plain = isinstance(module, nn.Linear)
        if weight is not None and weight.ndim == 2 and (plain or type(module).__name__ == "Conv1D"):
            found.append(BlockLinear(f"{name}.weight", module, not plain))
    return found


@torch.no_grad()
def in_order(block: DecoderBlock, hidden: torch.Tensor) -> list[list[BlockLinear]]:
    """The layers as they are called; those that read the same tensor one after the other belong together.

    Args:
        hidden: (1, tokens, width) that enters the block.
    """
    groups: list[list[BlockLinear]] = []
    last: list[torch.Tensor] = []

    def called(linear: BlockLinear, given: tuple[Any, ...]) -> None:
        if last and given[0] is last[0]:
            groups[-1].append(linear)
        elif all(linear is not other for group in groups for other in group):
            groups.append([linear])
        last[:] = [given[0]]

    handles = [
        linear.module.register_forward_pre_hook(lambda _module, given, linear=linear: called(linear, given))
        for linear in linears(block)
    ]
    try:
        block(hidden)
    finally:
        for handle in handles:
            handle.remove()
    return groups


@torch.no_grad()
def input_of(block: DecoderBlock, linear: BlockLinear, hidden: torch.Tensor) -> torch.Tensor:
    """What reaches a layer; nothing behind it is computed."""

    def reached(_module: nn.Module, given: tuple[Any, ...]) -> None:
        raise _Reached(given[0])

    handle = linear.module.register_forward_pre_hook(reached)
    try:
        block(hidden)
    except _Reached as stop:
        found: torch.Tensor = stop.value
        return found
    finally:
        handle.remove()
    raise AssertionError(f"{linear.name} was called before, and is not now")


class _Reached(Exception):  # noqa: N818 - no error: the layer was reached
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value
