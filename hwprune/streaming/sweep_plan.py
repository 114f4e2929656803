"""What a sweep does to every block of a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from hwprune.errors import UsageError
from hwprune.streaming.sublayers import KINDS

LAYER = "layer"
"""Pattern of whole blocks: the fraction of them that goes, those first that turn what passes them least."""
HIDDEN = "hidden"
"""Pattern of the width of the stream between blocks: the fraction of its channels that goes, in the whole model."""
KV = "kv"
"""Pattern of key-value groups, each with its queries."""
QUERY = "query"
"""Pattern of queries in the groups, which stay. ``head`` is both."""
WHOLE = (LAYER, HIDDEN, *KINDS)
"""Patterns that are decided before the first block is pruned: blocks, their attention or their MLP alone, and the width."""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What is done to every block.

    Attributes:
        patterns: (pattern, sparsity), as for `uniform_recipe`, `KV`, `QUERY`, and `WHOLE`.
        criterion: or a method.
        compensation: of the kept weights, with what the pruned blocks before have made as inputs.
        exclude: shell patterns of units that stay as they are, such as ``*.self_attn.*``.
        multiple: where the dense number of neurons is a multiple of this, the new one is, too. 1: as asked, to the neuron. The
            number of the stream's channels is a multiple of it, or of a part of it where the class needs another.
        strict: of all of it.
        by_block: of each block of the dense model, pattern -> sparsity; ``layer``, ``attention`` and ``mlp`` go with 1. Beside
            it there are no ``patterns``.
    """

    patterns: Sequence[tuple[str, float]]
    criterion: str
    compensation: str
    exclude: Sequence[str] = ()
    multiple: int = 1
    strict: bool = False
    by_block: Sequence[Mapping[str, float]] = ()

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise UsageError(f"numbers of neurons can't be multiples of {self.multiple}")
        names = [name for name, _ in self.patterns]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"{twice} is given twice")
        for chosen in (names, *self.by_block):
            if "head" in chosen and (KV in chosen or QUERY in chosen):
                raise UsageError(f"head takes key-value groups and queries: give it without {KV} and {QUERY}")
        for name, share in self.patterns:
            if name in WHOLE and not 0 < share < 1:
                what = "channels that go" if name == HIDDEN else "blocks that lose it"
                raise UsageError(f"{name}={share:g}: the fraction of the {what} must be between 0 and 1")
        if self.by_block and self.patterns:
            raise UsageError("what is said block by block leaves no place for patterns of all blocks")

    @property
    def of_blocks(self) -> list[tuple[str, float]]:
        """The patterns that are for what is in a block."""
        return [(name, share) for name, share in self.patterns if name not in WHOLE]

    def of(self, index: int) -> SweepPlan:
        """The plan of one block of the dense model."""
        if not self.by_block:
            return self
        own = [(name, share) for name, share in self.by_block[index].items() if name not in WHOLE and share > 0]
        return replace(self, patterns=own, by_block=())

    def lost(self, kind: str) -> list[int]:
        """The blocks of the dense model that are said to lose this: ``layer``, ``attention`` or ``mlp``."""
        return [index for index, block in enumerate(self.by_block) if block.get(kind)]

    def takes(self, kind: str) -> bool:
        """Does any block lose this: ``attention`` or ``mlp``?"""
        return any(name == kind for name, _ in self.patterns) or bool(self.lost(kind))

    def kept(self, size: int, sparsity: float) -> int:
        """Neurons that stay of so many: the nearest multiple, and never all of them."""
        wanted = size - round(sparsity * size)
        if size % self.multiple or size == self.multiple:
            return wanted
        nearest = round(wanted / self.multiple) * self.multiple
        return min(max(nearest, self.multiple), size - self.multiple)

    def excludes(self, name: str) -> bool:
        """Does a unit of this name in the whole model stay as it is?"""
        return any(fnmatchcase(name, glob) for glob in self.exclude)
