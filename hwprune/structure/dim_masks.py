"""The effect of removing or reordering indices of leaves on the dimensions that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from hwprune.structure.dims import BoolArray, Concat, Dim, IntArray, Leaf, Product, Space


class DimMasks:
    """Reads dimensions of a space; it changes nothing."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def kept(self, dim: Dim, counts: Mapping[int, int]) -> int:
        """Size of ``dim`` after removal; ``counts`` maps a leaf's number to how many indices stay."""
        dim = self._space.resolve(dim)
        if isinstance(dim, Leaf):
            return counts.get(dim.number, dim.size)
        if isinstance(dim, Product):
            return prod(self.kept(factor, counts) for factor in dim.factors)
        return sum(self.kept(part, counts) for part in dim.parts)

    def keep(self, dim: Dim, keeps: Mapping[int, BoolArray]) -> BoolArray:
        """Keep mask of ``dim``, shape (dim.size,); ``keeps`` maps a leaf's number to its mask."""
        dim = self._space.resolve(dim)
        if isinstance(dim, Leaf):
            mask = keeps.get(dim.number)
            return np.ones(dim.size, dtype=np.bool_) if mask is None else mask
        if isinstance(dim, Product):
            mask = np.ones(1, dtype=np.bool_)
            for factor in dim.factors:
                mask = np.logical_and.outer(mask, self.keep(factor, keeps)).reshape(-1)
            return mask
        parts = [self.keep(part, keeps) for part in dim.parts]
        return np.concatenate(parts) if parts else np.ones(0, dtype=np.bool_)

    def order(self, dim: Dim, orders: Mapping[int, IntArray]) -> IntArray:
        """Positions of ``dim`` in a new order; ``orders`` maps a leaf's number to the indices that stay, in theirs."""
        dim = self._space.resolve(dim)
        if isinstance(dim, Leaf):
            return orders.get(dim.number, np.arange(dim.size))
        if isinstance(dim, Product):
            positions = np.zeros(1, dtype=np.int64)
            for factor in dim.factors:
                positions = (positions[:, None] * factor.size + self.order(factor, orders)[None, :]).reshape(-1)
            return positions
        starts = np.cumsum([0, *(part.size for part in dim.parts)])
        parts = [start + self.order(part, orders) for start, part in zip(starts, dim.parts, strict=False)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def index(self, dim: Dim, leaf: Leaf) -> IntArray:
        """The index along ``leaf`` that each position of ``dim`` belongs to, or -1."""
        dim = self._space.resolve(dim)
        if isinstance(dim, Leaf):
            return np.arange(dim.size) if dim == leaf else np.full(dim.size, -1)
        if isinstance(dim, Concat):
            parts = [self.index(part, leaf) for part in dim.parts]
            return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        result = np.full(1, -1)
        for factor in dim.factors:
            inner = self.index(factor, leaf)
            outer = np.repeat(result, len(inner))
            result = np.where(outer >= 0, outer, np.tile(inner, len(result)))
        return result
