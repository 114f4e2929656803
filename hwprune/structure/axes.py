"""The axes of a graph, read off its parameters' dims: names, roles, masks, sizes after a cut."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from hwprune.errors import UnknownNameError, UsageError
from hwprune.structure.dim_masks import DimMasks
from hwprune.structure.dims import BoolArray, Concat, Dim, IntArray, Leaf, Product, Space
from hwprune.structure.scope import Value


@dataclass(frozen=True, slots=True)
class Axis:
    """An index space of the model: removing index i removes the matching slice of every member.

    ``exact``: the cut model equals the masked one. Otherwise a statistic runs over the axis, and
    ``inexact_reason`` names the operator. ``frozen``: why nothing may be removed, or None.
    """

    name: str
    size: int
    role: str
    exact: bool
    frozen: str | None
    members: tuple[tuple[str, int], ...]
    inexact_reason: str | None = None


class AxisTable:
    """Every axis that a parameter carries.

    Args:
        parameters: name -> dims; tied names share one `Value`.
    """

    def __init__(self, space: Space, parameters: Mapping[str, Value]) -> None:
        self.space = space
        self._dim_masks = DimMasks(space)
        self.parameters = dict(parameters)
        self.leaves: dict[str, Leaf] = {}
        self.axes = self._find()
        self._by_name = {axis.name: axis for axis in self.axes}

    def axis(self, name: str) -> Axis:
        """The axis of that name. Raises `UnknownNameError`."""
        if name not in self._by_name:
            raise UnknownNameError("axis", name, self._by_name)
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def slices(self, axis: Axis, parameter: str, dim: int) -> IntArray:
        """The index along ``axis`` of each position of the parameter's dim, or -1; shape (size of the dim,)."""
        return self._dim_masks.index(self.parameters[parameter][dim], self.leaves[axis.name])

    def numbers(self, counts: Mapping[str, int]) -> dict[int, int]:
        """Kept counts by leaf number, from counts by axis name."""
        return {self.leaves[name].number: count for name, count in counts.items()}

    def shape(self, parameter: str, counts: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of a parameter after a cut that keeps ``counts[axis name]`` indices."""
        numbers = self.numbers(counts)
        return tuple(self._dim_masks.kept(dim, numbers) for dim in self.parameters[parameter].dims)

    def masks(self, keeps: Mapping[str, torch.Tensor]) -> dict[int, BoolArray]:
        """Keep masks by leaf number. Raises `UsageError` with every fault."""
        faults = []
        masks: dict[int, BoolArray] = {}
        for name, keep in keeps.items():
            axis = self.axis(name)
            if axis.frozen:
                faults.append(f"{name}: nothing may be removed ({axis.frozen})")
            elif not isinstance(keep, torch.Tensor) or keep.dtype != torch.bool or keep.shape != (axis.size,):
                got = f"{keep.dtype} {tuple(keep.shape)}" if isinstance(keep, torch.Tensor) else type(keep).__name__
                faults.append(f"{name}: the keep mask must be a bool tensor of shape ({axis.size},), got {got}")
            elif not bool(keep.any()):
                faults.append(f"{name}: at least one index must stay")
            else:
                masks[self.leaves[name].number] = keep.cpu().numpy().astype(np.bool_)
        if faults:
            raise UsageError("these axes can't be cut so:", faults)
        return masks

    def touched(self, value: Value, masks: Mapping[int, BoolArray]) -> list[tuple[int, BoolArray]]:
        """(position, keep mask) of the dims that the masks change."""
        return [
            (position, self._dim_masks.keep(dim, masks))
            for position, dim in enumerate(value.dims)
            if any(leaf.number in masks for leaf in self.space.leaves(dim))
        ]

    def reordered(
        self, keeps: Mapping[str, torch.Tensor], orders: Mapping[str, torch.Tensor]
    ) -> dict[str, list[IntArray | None]]:
        """The positions of each dim of the cut tensor in their new order, or None; by parameter that carries a reordered axis.

        ``orders``: axis name -> order of its kept indices, (kept,) int64.
        """
        masks = self.masks(keeps)
        kept = {number: mask.nonzero()[0] for number, mask in masks.items()}
        new = dict(kept)
        for name, order in orders.items():
            leaf = self.leaves[name]
            new[leaf.number] = kept.get(leaf.number, np.arange(leaf.size))[order.cpu().numpy()]
        changed = {self.leaves[name].number for name in orders}
        by_parameter: dict[str, list[IntArray | None]] = {}
        for parameter, value in self.parameters.items():
            dims: list[IntArray | None] = []
            for dim in value.dims:
                if not any(leaf.number in changed for leaf in self.space.leaves(dim)):
                    dims.append(None)
                    continue
                stays = self._dim_masks.keep(dim, masks).nonzero()[0]
                dims.append(np.searchsorted(stays, self._dim_masks.order(dim, new)))
            if any(positions is not None for positions in dims):
                by_parameter[parameter] = dims
        return by_parameter

    def project(self, dim: Dim, keep: BoolArray, masks: dict[int, BoolArray]) -> None:
        """Find the leaf masks that give ``keep`` on ``dim`` and enter them into ``masks`` where none stands.

        The inverse of `Space.keep`; where no leaf masks give it, what was entered gives something else.
        """
        dim = self.space.resolve(dim)
        if bool(keep.all()):
            return
        if isinstance(dim, Leaf):
            masks.setdefault(dim.number, keep)
        elif isinstance(dim, Concat):
            start = 0
            for part in dim.parts:
                self.project(part, keep[start : start + part.size], masks)
                start += part.size
        else:
            assert isinstance(dim, Product)
            grid = keep.reshape([factor.size for factor in dim.factors])
            for position, factor in enumerate(dim.factors):
                others = tuple(p for p in range(grid.ndim) if p != position)
                self.project(factor, np.asarray(grid.any(axis=others)), masks)

    def _find(self) -> tuple[Axis, ...]:
        members: dict[Leaf, list[tuple[str, int]]] = {}
        names: dict[Leaf, str] = {}
        for parameter, value in self.parameters.items():
            for position, dim in enumerate(value.dims):
                leaves = list(dict.fromkeys(self.space.leaves(dim)))
                for place, leaf in enumerate(leaves):
                    members.setdefault(leaf, []).append((parameter, position))
                    # A dim that holds several axes (fused QKV: heads and head_dim) numbers them.
                    suffix = f"/{place}" if len(leaves) > 1 else ""
                    names.setdefault(leaf, f"{parameter}:{position}{suffix}")
        axes = []
        for leaf, name in names.items():
            if "position" in self.space.tags(leaf):
                continue
            self.leaves[name] = leaf
            inexact = self.space.inexact(leaf)
            leaf_members = tuple(dict.fromkeys(members[leaf]))
            axes.append(Axis(name, leaf.size, self._role(leaf), inexact is None, self.space.frozen(leaf), leaf_members, inexact))
        return tuple(axes)

    def _role(self, leaf: Leaf) -> str:
        """Roles come from use, not from names."""
        tags: Collection[str] = self.space.tags(leaf)
        if "attention_batch" in tags:
            return "head"
        if "attention_inner" in tags:
            return "head_dim"
        if "summed" in tags:
            return "hidden"
        if "expert" in tags:
            return "expert"
        if "group" in tags:
            return "group"
        if "conv_out" in tags or "conv_in" in tags:
            return "channel"
        if "linear_out" in tags or "linear_in" in tags:
            return "neuron"
        return "hidden" if self.space.inexact(leaf) else "other"
