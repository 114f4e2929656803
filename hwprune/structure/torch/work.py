"""The multiply-accumulates of a traced model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from hwprune.structure.dim_masks import DimMasks
from hwprune.structure.dims import Dim, Space


@dataclass(frozen=True, slots=True)
class WorkCount:
    """Products of sizes, one for each kind of multiply-accumulate.

    Attributes:
        products: node, and the dims whose sizes are multiplied.
        free: numbers that stand for sizes that are known only at run time.
        lengths: those of them that are a number of tokens -> that of the example inputs.
    """

    products: Sequence[tuple[str, tuple[Dim, ...]]]
    free: frozenset[int]
    lengths: Mapping[int, int] = field(default_factory=dict)

    def count(self, space: Space, kept: Mapping[int, int], batch: int, live: Collection[str] | None) -> int:
        """Multiply-accumulates of one run.

        Args:
            space: of the dims.
            kept: leaf -> how many of its indices are left.
            batch: what other free sizes are.
            live: nodes that are left; None: all.
        """
        numbers, masks = dict(kept), DimMasks(space)
        total = 0
        for node, dims in self.products:
            if live is not None and node not in live:
                continue
            product = 1
            for dim in dims:
                for leaf in space.leaves(dim):
                    if leaf.size in self.free:
                        numbers[leaf.number] = self.lengths.get(leaf.size, batch)
                product *= masks.kept(dim, numbers)
            total += product
        return total
