"""The statements that a rule may make about the dims of an operator's tensors; shared by the ATen and the ONNX tables."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hwprune.structure.dims import ONE, Concat, Dim, MismatchError, Product, Space

Kept = Callable[[Dim], int]
"""Size of a dim after a cut."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the trace.

    ``zeros[d]``: wherever an index of dim d is removed, the masked model has zeros in that slice. Contracting
    two activations over a dim is exact only if one of them is zero there.
    ``offset[d]``: likewise, but a constant other than zero, as where an epsilon was added; empty: nowhere.
    """

    dims: tuple[Dim, ...]
    zeros: tuple[bool, ...]
    parameter: str | None = None
    offset: tuple[bool, ...] = ()

    def __getitem__(self, index: int) -> Dim:
        return self.dims[index]

    def __len__(self) -> int:
        return len(self.dims)


@dataclass(slots=True)
class Scope(abc.ABC):
    """One operator while its rule runs: what rules say about dims, whatever the graph's format is.

    Attributes:
        name: the operator and where it stands, for reasons.
        outputs: the shapes of its outputs in the dense model; a symbolic size appears as a large prime.
        inputs: every tensor that it reads.
        work: products of sizes, one for each kind of multiply-accumulate that it does.
    """

    space: Space
    name: str
    outputs: list[tuple[int, ...]]
    inputs: list[Value] = field(default_factory=list)
    work: list[tuple[Dim, ...]] = field(default_factory=list)
    unmasked: list[tuple[str, int]] = field(default_factory=list)
    """(parameter, dim) that a mask must not zero because another factor does."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shape of the (first) output; a symbolic size appears as a large prime."""
        return self.outputs[0]

    def unify(self, a: Dim, b: Dim) -> None:
        self.space.unify(a, b, self.name)

    def freeze(self, dim: Dim, reason: str) -> None:
        self.space.freeze(dim, f"{self.name}: {reason}")

    def inexact(self, dim: Dim, reason: str) -> None:
        self.space.mark_inexact(dim, f"{self.name}: {reason}")

    def pick(self, dim: Dim, index: int | None) -> None:
        """One index of ``dim`` is picked by number: it must keep its place.

        What follows a first part of a concatenation may still change: a class token stays where it is.
        """
        resolved = self.space.resolve(dim)
        if index is not None and isinstance(resolved, Concat):
            for place, part in enumerate(resolved.parts):
                if part.size != 1 or index < 0:
                    break
                if place == index:
                    return
        self.freeze(dim, "one index is picked by number")

    def is_frozen(self, dim: Dim) -> bool:
        return all(self.space.frozen(leaf) for leaf in self.space.leaves(dim))

    def opaque(self, size: int, reason: str) -> Dim:
        """A new dim that nothing may be removed from."""
        dim = self.space.leaf(size)
        self.freeze(dim, reason)
        return dim

    def contract(self, a: Value, i: int, b: Value, j: int) -> None:
        """Dims i of a and j of b are summed over together."""
        self.unify(a[i], b[j])
        if not (a.zeros[i] or b.zeros[j]):
            self.inexact(a[i], "sums over values that a mask does not make zero")

    def broadcast(self, values: Sequence[Value]) -> tuple[Dim, ...]:
        """Unify aligned dims from the right; a dim of size 1 yields to the other."""
        rank = max(len(value) for value in values)
        dims: list[Dim] = []
        for position in range(-rank, 0):
            result: Dim = ONE
            for value in values:
                if -position > len(value) or value[position].size == 1:
                    continue
                if result.size == 1:
                    result = value[position]
                else:
                    self.unify(result, value[position])
            dims.append(result)
        return tuple(dims)

    def parts(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """``dim`` as consecutive parts of these sizes; frozen where its structure doesn't allow it."""
        try:
            return self.space.split(dim, sizes)
        except MismatchError as mismatch:
            self.freeze(dim, str(mismatch))
            return [self.opaque(size, str(mismatch)) for size in sizes]

    def regroup(self, value: Value, sizes: Sequence[int]) -> Value:
        """Row-major reshape of ``value`` to ``sizes``."""
        dims: list[Dim] = []
        zeros: list[bool] = []
        source = list(zip(value.dims, value.zeros, strict=True))
        target = list(sizes)
        while source or target:
            group: list[tuple[Dim, bool]] = []
            wanted: list[int] = []
            have, want = 1, 1
            if source:
                group.append(source.pop(0))
                have = group[0][0].size
            if target:
                wanted.append(target.pop(0))
                want = wanted[0]
            while have != want:
                if have < want and source:
                    group.append(source.pop(0))
                    have *= group[-1][0].size
                elif target:
                    wanted.append(target.pop(0))
                    want *= wanted[-1]
                else:
                    raise ValueError(f"{self.name}: can't reshape to {list(sizes)}")
            whole = Product(tuple(dim for dim, _ in group))
            # Nothing is removed from a frozen dim, so it can't spoil what is zero.
            flag = all(zero or self.is_frozen(dim) for dim, zero in group)
            try:
                dims.extend(self.space.factor(whole, wanted) if wanted else [])
            except MismatchError as mismatch:
                self.freeze(whole, str(mismatch))
                dims.extend(self.opaque(size, str(mismatch)) for size in wanted)
            zeros.extend([flag] * len(wanted))
        return Value(tuple(dims), tuple(zeros))

    def macs(self, *dims: Dim) -> None:
        """The operator does as many multiply-accumulates as the product of these sizes."""
        self.work.append(dims)
