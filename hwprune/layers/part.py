"""Parts: which weights make, read or scale the channels of an axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from hwprune.layers.statistics import LayerStatistics

MAKES, READS, SCALES, OTHER = "makes", "reads", "scales", "other"


def grouped(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """(out, in / G, *kernel) as (G, out / G, d)."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The part of one tensor that an axis owns, or a whole weight matrix.

    Attributes:
        parameter: the tensor's name.
        kind: ``makes`` (the axis is the layer's outputs), ``reads`` (its inputs), ``scales`` (learned scales of a norm),
            ``other``.
        tensor: (out, in / G, *kernel) for a layer's weight.
        dim: along which the axis lies.
        positions: (n, k): the positions along ``dim`` that belong to each index of the axis.
        groups: of a convolution.
        centred: can a constant be added to the layer's outputs?
        statistics: of the layer.
    """

    parameter: str
    kind: str
    tensor: torch.Tensor
    dim: int
    positions: torch.Tensor
    groups: int = 1
    centred: bool = False
    statistics: LayerStatistics | None = None

    @classmethod
    def of(
        cls, weight: torch.Tensor, kind: str = MAKES, statistics: LayerStatistics | None = None, *, centred: bool = False
    ) -> Part:
        """A layer whose outputs (``makes``) or inputs (``reads``) are the axis, index by index."""
        dim = 1 if kind == READS else 0
        return cls("weight", kind, weight, dim, torch.arange(weight.shape[dim])[:, None], 1, centred, statistics)

    @property
    def size(self) -> int:
        return len(self.positions)

    @property
    def kernel(self) -> int:
        """Kernel positions of the weight."""
        positions = 1
        for size in self.tensor.shape[2:]:
            positions *= size
        return positions

    @property
    def columns(self) -> torch.Tensor:
        """(n, k * kernel): for a part that reads, the columns of a group's Gram matrix that belong to each index."""
        kernel = self.kernel
        return (self.positions[:, :, None] * kernel + torch.arange(kernel)).reshape(self.size, -1)

    def slices(self, tensor: torch.Tensor | None = None) -> torch.Tensor:
        """(n, everything an index owns) of the part's tensor, or of another of its shape."""
        moved = (self.tensor if tensor is None else tensor).detach().movedim(self.dim, 0)
        return moved.index_select(0, self.positions.reshape(-1).to(moved.device)).reshape(self.size, -1)

    def channels(self, values: torch.Tensor) -> torch.Tensor:
        """(..., n, owned): values (..., in) of the layer's input channels, for a part that reads."""
        grouped_values = values.reshape(*values.shape[:-1], self.groups, -1)
        picked = grouped_values[..., self.positions.reshape(-1)].reshape(*values.shape[:-1], self.groups, *self.positions.shape)
        return picked.movedim(-3, -1).flatten(-2)


def producers(parts: Iterable[Part]) -> list[Part]:
    """The layers whose outputs the axis is; without any (an embedding's width), every tensor with two dims or more."""
    all_parts = list(parts)
    makers = [part for part in all_parts if part.kind == MAKES]
    return makers or [part for part in all_parts if part.tensor.ndim > 1] or all_parts


def readers(parts: Iterable[Part]) -> list[Part]:
    """The layers that read the axis."""
    return [part for part in parts if part.kind == READS]
