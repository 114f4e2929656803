"""The graph of a model that has matrices, axes or branches to prune."""

from __future__ import annotations

import abc
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from hwprune.errors import UnknownNameError
from hwprune.structure.axes import Axis
from hwprune.structure.borders import TokenAxis
from hwprune.structure.branches import Branch
from hwprune.structure.dims import BoolArray, IntArray


@dataclass(frozen=True, slots=True)
class Matrix:
    """The weight of a linear or convolution layer.

    ``shape`` is (out, in / groups, *kernel). ``transposed``: the parameter itself is (in, out), as in ``x @ weight``.
    """

    parameter: str
    kind: str
    shape: tuple[int, ...]
    groups: int
    transposed: bool = False

    @property
    def out_dim(self) -> int:
        """The parameter's dim of the outputs."""
        return 1 if self.transposed else 0

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """The parameter, or a mask of its shape, as (out, in / groups, *kernel); its own inverse."""
        return weight.t() if self.transposed else weight


class ModelGraph(abc.ABC):
    """The interface that pruning asks of a model: its axes, matrices and branches, and copies without some of them."""

    module: fx.GraphModule
    matrices: tuple[Matrix, ...]
    axes: tuple[Axis, ...]

    @property
    @abc.abstractmethod
    def branches(self) -> tuple[Branch, ...]:
        """Sides of sums that may be dropped as a whole."""

    @property
    def token_axes(self) -> tuple[TokenAxis, ...]:
        """Places where tokens can be made fewer, in the model's order."""
        return ()

    @property
    def token_reason(self) -> str | None:
        """Why there are none, or not at all borders."""
        return None

    def dead_tokens(self, drop: Collection[str]) -> set[str]:  # noqa: ARG002 - a graph without tokens
        """Those of them whose attention is gone once these branches are dropped."""
        return set()

    def branch(self, name: str) -> Branch:
        """The branch of that name. Raises `UnknownNameError`."""
        for branch in self.branches:
            if branch.name == name:
                return branch
        raise UnknownNameError("branch", name, [branch.name for branch in self.branches])

    @abc.abstractmethod
    def axis(self, name: str) -> Axis:
        """The axis of that name. Raises `UnknownNameError`."""

    @abc.abstractmethod
    def slices(self, axis: Axis, parameter: str, dim: int) -> IntArray:
        """The index along ``axis`` of each position of the parameter's dim, or -1."""

    @abc.abstractmethod
    def parameter_count(self, counts: Mapping[str, int], drop: Collection[str] = ()) -> int:
        """Number of parameters after a cut, predicted."""

    @abc.abstractmethod
    def macs(self, counts: Mapping[str, int], batch: int = 1, drop: Collection[str] = ()) -> int:
        """Multiply-accumulates after a cut."""

    @abc.abstractmethod
    def dead(self, drop: Collection[str]) -> set[str]:
        """Parameters and buffers that nothing reads once these branches are dropped."""

    @abc.abstractmethod
    def selected(self, keeps: Mapping[str, torch.Tensor]) -> dict[str, list[BoolArray]]:
        """The keep masks, one a dim, of every tensor that a cut changes."""

    def positions(
        self, keeps: Mapping[str, torch.Tensor], orders: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, list[torch.Tensor]]:
        """The positions of the dense tensor that each dim still has, of every tensor that a cut or another order changes."""
        kept = {name: [torch.from_numpy(mask.nonzero()[0]) for mask in masks] for name, masks in self.selected(keeps).items()}
        for name, dims in self.reordered(keeps, orders or {}).items():
            old = kept.get(name) or [torch.arange(size) for size in self.shape(name, {})]
            kept[name] = [at if order is None else at[torch.from_numpy(order)] for at, order in zip(old, dims, strict=True)]
        return kept

    @abc.abstractmethod
    def reordered(
        self, keeps: Mapping[str, torch.Tensor], orders: Mapping[str, torch.Tensor]
    ) -> dict[str, list[IntArray | None]]:
        """The positions of each dim of the cut tensor in their new order, of every tensor that carries a reordered axis."""

    @abc.abstractmethod
    def shape(self, parameter: str, counts: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of a parameter after a cut that keeps ``counts[axis name]`` indices."""

    @abc.abstractmethod
    def cut(self, keeps: Mapping[str, torch.Tensor], drop: Collection[str] = ()) -> fx.GraphModule:
        """The model with the removed indices and branches gone."""

    @abc.abstractmethod
    def reorder(self, module: fx.GraphModule, keeps: Mapping[str, torch.Tensor], orders: Mapping[str, torch.Tensor]) -> None:
        """Put the kept indices of axes into another order, in place."""

    @abc.abstractmethod
    def feeding_axis(self, matrix: Matrix) -> Axis | None:
        """The axis whose indices are the input channels of a layer."""

    @abc.abstractmethod
    def mask(self, keeps: Mapping[str, torch.Tensor], drop: Collection[str] = ()) -> fx.GraphModule:
        """The model in its original shapes with them zeroed."""
