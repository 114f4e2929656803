"""What a block's linear layers are given, window by window, as the sums that make their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from hwprune.errors import WorkloadError
from hwprune.layers.statistics import LayerStatistics
from hwprune.second_order.products import gram
from hwprune.streaming.block_layers import BlockLinear, input_of, linears
from hwprune.streaming.blocks import DecoderBlock
from hwprune.streaming.hidden_states import HiddenStates

NEEDS = frozenset(
    ("gram", "covariance", "mean", "input_square", "channel_mean", "channel_variance", "channel_abs", "channel_zero")
)
"""Fields of `LayerStatistics` that come of it."""


@dataclass(slots=True)
class InputSums:
    """Sums over rows of inputs, d columns each.

    Attributes:
        shift: (d,) that is taken off first, so that a large mean does not swallow the covariance.
        rows: how many were added.
        products: is ``gram`` (d, d), or its diagonal (d,) alone? The whole of it is most of the memory where layers are wide.
        gram: of the shifted rows.
        total, absolute, zero: (d,) of the shifted rows, and of the rows as they are.
        cross: (columns in the dense model, d), of its rows with these, neither shifted.
    """

    shift: torch.Tensor
    products: bool = True
    rows: int = 0
    gram: Any = 0.0
    total: Any = 0.0
    absolute: Any = 0.0
    zero: Any = 0.0
    cross: Any = 0.0

    def add(self, inputs: torch.Tensor, dense: torch.Tensor | None = None) -> None:
        """Add (..., d) inputs, and what the dense model's layer is given in their place."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        moved = x - self.shift
        self.rows += len(x)
        self.gram = self.gram + (gram(moved) if self.products else moved.square().sum(dim=0, dtype=torch.float64))
        self.total = self.total + moved.sum(dim=0, dtype=torch.float64)
        self.absolute = self.absolute + x.abs().sum(dim=0, dtype=torch.float64)
        self.zero = self.zero + (x == 0).sum(dim=0)
        if dense is not None:
            self.cross = self.cross + dense.reshape(len(x), -1).float().T @ x


def cross_of(sums: list[InputSums]) -> torch.Tensor:
    """(columns in the dense model, d) float64: mean product of its inputs with these."""
    whole = reduce(_together, sums)
    found: torch.Tensor = whole.cross.double() / whole.rows
    return found


def statistics_of(sums: list[InputSums], name: str) -> LayerStatistics:
    """The statistics of everything that was added to several sums of one shift.

    Raises:
        WorkloadError: an input is NaN or infinite; ``name`` says of which layer.
    """
    whole = reduce(_together, sums)
    offset = whole.total / whole.rows
    covariance = None
    if whole.products:
        covariance = (whole.gram.double() / whole.rows).addr_(offset, offset, alpha=-1).float()
    variance = whole.gram / whole.rows - offset.square() if covariance is None else covariance.diagonal().double()
    if not bool(torch.isfinite(variance if covariance is None else covariance).all()):
        raise WorkloadError(f"the input of {name} holds NaN or infinity on the calibration text")
    mean, variance = whole.shift.double() + offset, variance.clamp(min=0)
    return LayerStatistics(
        rows=whole.rows, weight_inputs=len(mean), mean=mean.float()[None],
        covariance=None if covariance is None else covariance[None],
        input_square=(variance + mean.square()).float()[None], channel_mean=mean.float(), channel_variance=variance.float(),
        channel_abs=(whole.absolute / whole.rows).float(), channel_zero=(whole.zero / whole.rows).float(),
    )  # fmt: skip


def _together(one: InputSums, other: InputSums) -> InputSums:
    return InputSums(
        one.shift, one.products, one.rows + other.rows, one.gram + other.gram, one.total + other.total,
        one.absolute + other.absolute, one.zero + other.zero, one.cross + other.cross,
    )  # fmt: skip


@dataclass(slots=True)
class BlockInputs:
    """A block with what enters it, and the dense block with what enters that one.

    Attributes:
        block: as it is now.
        entering: hidden states after the pruned blocks before it.
        fitted, held: windows that repairs are fitted to, and windows that decide whether a repair stays.
        dense_block, dense_entering: the same of the dense model; None: nothing is compared with it.
    """

    block: DecoderBlock
    entering: HiddenStates
    fitted: Sequence[int]
    held: Sequence[int]
    dense_block: DecoderBlock | None = None
    dense_entering: HiddenStates | None = None

    @property
    def beside(self) -> bool:
        """Is the dense model there?"""
        return self.dense_block is not None and self.dense_entering is not None

    def sums(self, linear: BlockLinear, *, products: bool = True) -> tuple[InputSums, InputSums]:
        """Sums over a layer's inputs in the fitted windows, and in those that are held out.

        Args:
            products: of all pairs of columns, and not only the squares.
        """
        dense = self.dense_block and next(other for other in linears(self.dense_block) if other.name == linear.name)
        shift: torch.Tensor | None = None
        found: list[InputSums] = []
        for which in (self.fitted, self.held):
            sums: InputSums | None = None
            for window in which:
                y = input_of(self.block, linear, self.entering.read(window))
                if shift is None:
                    shift = y.reshape(-1, y.shape[-1]).float().mean(dim=0)
                if sums is None:
                    sums = InputSums(shift, products)
                x = None
                if self.dense_block is not None and self.dense_entering is not None and dense:
                    x = input_of(self.dense_block, dense, self.dense_entering.read(window))
                sums.add(y, x)
            assert sums is not None
            found.append(sums)
        return found[0], found[1]
