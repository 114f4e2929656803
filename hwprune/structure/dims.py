"""The axis algebra: what index space each dimension of each tensor is.

    Dim := Leaf(size) | Product(factors...) | Concat(parts...)

A *leaf* is an elementary axis: removing index i from it removes the matching slice of every tensor
that carries it. A *product* is row-major (the last factor varies fastest), a *concat* lays its parts
end to end. `Space` holds what is known of the leaves: which are the same (union-find), which were
refined into a product or a concat, which are frozen and why, which are inexact and why.

`unify` makes two dims the same index space. It only ever adds constraints (merges or refines leaves);
what it can't match it freezes. So a gap in the algebra costs prunability, never correctness.

Nothing here knows of tensors, of PyTorch or of ONNX.

One file because splitting, factoring and unifying call each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Leaf:
    """An elementary axis; ``number`` identifies it inside its `Space`."""

    number: int
    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product: index = ((i0 * s1 + i1) * s2 + i2) ..."""

    factors: tuple[Dim, ...]

    @property
    def size(self) -> int:
        return prod(factor.size for factor in self.factors)


@dataclass(frozen=True, slots=True)
class Concat:
    """The parts laid end to end."""

    parts: tuple[Dim, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


Dim = Leaf | Product | Concat

ONE: Dim = Product(())
"""The dimension of size 1: nothing to remove, unifies with nothing."""


class MismatchError(Exception):
    """Two dims can't be matched; `Space.unify` turns it into a freeze."""


@dataclass(slots=True)
class _Entry:
    size: int
    bound: Dim | None = None
    frozen: str | None = None
    inexact: str | None = None
    tags: set[str] = field(default_factory=set)


STEPS = 40
"""Concatenations that one unification may take apart, besides four for each of its parts."""


ROWS = 64
"""Rows of a product that are written out at most where a boundary lies inside one."""


class Space:
    """The leaves of one graph and everything known about them."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._steps = 0

    # -- making and reading ------------------------------------------------------------------

    def leaf(self, size: int) -> Dim:
        """A new elementary axis. Size 1 gives `ONE`."""
        if size < 0:
            raise ValueError(f"an axis of size {size}")
        if size == 1:
            return ONE
        self._entries.append(_Entry(size))
        return Leaf(len(self._entries) - 1, size)

    def resolve(self, dim: Dim) -> Dim:
        """Normal form: bindings followed, products and concats flat, factors of size 1 dropped."""
        if isinstance(dim, Leaf):
            bound = self._entries[dim.number].bound
            if bound is None:
                return dim
            resolved = self.resolve(bound)
            self._entries[dim.number].bound = resolved  # path compression
            return resolved
        if isinstance(dim, Product):
            return self._product([self.resolve(factor) for factor in dim.factors])
        return self._concat([self.resolve(part) for part in dim.parts])

    @staticmethod
    def _product(factors: Sequence[Dim]) -> Dim:
        flat: list[Dim] = []
        for factor in factors:
            flat.extend(factor.factors if isinstance(factor, Product) else (factor,))
        return flat[0] if len(flat) == 1 else Product(tuple(flat))

    @staticmethod
    def _concat(parts: Sequence[Dim]) -> Dim:
        flat: list[Dim] = []
        for part in parts:
            if part.size:
                flat.extend(part.parts if isinstance(part, Concat) else (part,))
        return flat[0] if len(flat) == 1 else Concat(tuple(flat))

    def leaves(self, dim: Dim) -> Iterator[Leaf]:
        """The unbound leaves of ``dim`` in order, with repetition."""
        dim = self.resolve(dim)
        if isinstance(dim, Leaf):
            yield dim
            return
        for child in dim.factors if isinstance(dim, Product) else dim.parts:
            yield from self.leaves(child)

    def frozen(self, leaf: Leaf) -> str | None:
        return self._entries[leaf.number].frozen

    def frozen_number(self, number: int) -> str | None:
        """The reason by a leaf's number."""
        return self._entries[number].frozen

    def inexact(self, leaf: Leaf) -> str | None:
        return self._entries[leaf.number].inexact

    def tags(self, leaf: Leaf) -> frozenset[str]:
        return frozenset(self._entries[leaf.number].tags)

    # -- marks -------------------------------------------------------------------------------

    def freeze(self, dim: Dim, reason: str) -> None:
        """Freeze ``dim``: nothing of it may be removed. The first reason given is kept."""
        for leaf in self.leaves(dim):
            entry = self._entries[leaf.number]
            entry.frozen = entry.frozen or reason

    def mark_inexact(self, dim: Dim, reason: str) -> None:
        """Mark ``dim`` as inexact: indices may be removed, but then the cut model differs from the masked one."""
        for leaf in self.leaves(dim):
            entry = self._entries[leaf.number]
            entry.inexact = entry.inexact or reason

    def tag(self, dim: Dim, *tags: str) -> None:
        """Remember how ``dim`` is used; roles are read from this. Products pass tags to all factors."""
        for leaf in self.leaves(dim):
            self._entries[leaf.number].tags.update(tags)

    def _bind(self, leaf: Leaf, dim: Dim) -> None:
        entry = self._entries[leaf.number]
        if any(inner.number == leaf.number for inner in self.leaves(dim)):  # it would be a part of itself
            self.freeze(dim, "is laid beside a shifted copy of itself")
            return
        entry.bound = dim
        if entry.frozen:
            self.freeze(dim, entry.frozen)
        if entry.inexact:
            self.mark_inexact(dim, entry.inexact)
        self.tag(dim, *entry.tags)

    # -- refinement --------------------------------------------------------------------------

    def split(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """``dim`` as the concatenation of parts of the given sizes. Raises `MismatchError`."""
        if sum(sizes) != dim.size:
            raise MismatchError(f"parts {list(sizes)} of a dimension of size {dim.size}")
        parts: list[Dim] = []
        rest = dim
        for size in sizes[:-1]:
            head, rest = self._split_at(rest, size)
            parts.append(head)
        return [*parts, rest]

    def _split_at(self, dim: Dim, at: int) -> tuple[Dim, Dim]:
        dim = self.resolve(dim)
        if at == 0:
            return Concat(()), dim
        if at == dim.size:
            return dim, Concat(())
        if isinstance(dim, Leaf):
            head, tail = self.leaf(at), self.leaf(dim.size - at)
            self._bind(dim, Concat((head, tail)))
            return head, tail
        if isinstance(dim, Product):
            outer, inner = dim.factors[0], Product(dim.factors[1:])
            if at % inner.size:
                return self._split_at(self._rows_apart(outer, inner, f"a boundary at {at} inside rows of {inner.size}"), at)
            head, tail = self._split_at(outer, at // inner.size)
            return self.resolve(Product((head, inner))), self.resolve(Product((tail, inner)))
        first: list[Dim] = []
        rest = list(dim.parts)
        while at >= rest[0].size:
            at -= rest[0].size
            first.append(rest.pop(0))
        if at:
            head, tail = self._split_at(rest[0], at)
            first.append(head)
            rest[0] = tail
        return self._concat(first), self._concat(rest)

    def _rows_apart(self, outer: Dim, inner: Dim, reason: str) -> Dim:
        """The product as its rows laid end to end: all rows stay, and what goes of one goes of each, wherever boundaries lie."""
        if outer.size > ROWS:
            raise MismatchError(reason)
        self.freeze(outer, reason)
        return self.resolve(Concat((inner,) * outer.size))

    def factor(self, dim: Dim, sizes: Sequence[int]) -> list[Dim]:
        """``dim`` as the row-major product of factors of the given sizes. Raises `MismatchError`."""
        if prod(sizes) != dim.size:
            raise MismatchError(f"factors {list(sizes)} of a dimension of size {dim.size}")
        factors: list[Dim] = []
        rest = dim
        for size in sizes[:-1]:
            head, rest = self._factor_at(rest, size)
            factors.append(head)
        return [*factors, self.resolve(rest)]

    def _factor_at(self, dim: Dim, outer: int) -> tuple[Dim, Dim]:
        """(outer factor of that size, the rest)."""
        dim = self.resolve(dim)
        if outer == 1:
            return ONE, dim
        if outer == dim.size:
            return dim, ONE
        if dim.size % outer:
            raise MismatchError(f"rows of {outer} in a dimension of size {dim.size}")
        if isinstance(dim, Leaf):
            head, tail = self.leaf(outer), self.leaf(dim.size // outer)
            self._bind(dim, Product((head, tail)))
            return head, tail
        if isinstance(dim, Product):
            first, rest = dim.factors[0], Product(dim.factors[1:])
            if outer <= first.size:
                head, tail = self._factor_at(first, outer)
                return head, self.resolve(Product((tail, rest)))
            if outer % first.size:
                raise MismatchError(f"rows of {outer} across a factor of size {first.size}")
            head, tail = self._factor_at(rest, outer // first.size)
            return self.resolve(Product((first, head))), tail
        inner = dim.size // outer
        heads: list[Dim] = []
        shared: Dim | None = None
        across = [part.size for part in dim.parts if part.size % inner]
        if across:
            head, tail = self.leaf(outer), self.leaf(inner)
            self._unify(self._rows_apart(head, tail, f"rows of {inner} across a part of size {across[0]}"), dim)
            return head, self.resolve(tail)
        for part in dim.parts:
            head, tail = self._factor_at(part, part.size // inner)
            heads.append(head)
            if shared is None:
                shared = tail
            else:
                self._unify(shared, tail)
        assert shared is not None  # a normal-form concat has parts
        return self.resolve(Concat(tuple(heads))), self.resolve(shared)

    # -- unification -------------------------------------------------------------------------

    def unify(self, a: Dim, b: Dim, where: str) -> None:
        """Make ``a`` and ``b`` the same index space, or freeze both with the reason.

        ``where`` names the operator, for the reason.
        """
        self._steps = STEPS + 4 * sum(1 for dim in (a, b) for _ in self.leaves(dim))
        try:
            self._unify(a, b)
        except MismatchError as mismatch:
            for dim in (a, b):
                self.freeze(dim, f"{where}: {mismatch}")

    def _unify(self, a: Dim, b: Dim) -> None:
        a, b = self.resolve(a), self.resolve(b)
        if a == b:
            return
        if a.size != b.size:
            raise MismatchError(f"sizes {a.size} and {b.size} differ")
        if isinstance(a, Leaf):
            self._bind(a, b)
        elif isinstance(b, Leaf):
            self._bind(b, a)
        elif isinstance(a, Concat):
            self._unify_concat(a, b)
        elif isinstance(b, Concat):
            self._unify_concat(b, a)
        else:
            self._unify_product(a, b)

    def _unify_concat(self, a: Concat, b: Dim) -> None:
        self._steps -= 1
        if self._steps < 0:  # each step cuts one index off, and as many are left as there are indices
            raise MismatchError("is laid beside a shifted copy of itself")
        rest: Dim = b
        for part in a.parts[:-1]:
            head, rest = self._split_at(rest, part.size)
            self._unify(part, head)
        self._unify(a.parts[-1], rest)

    def _unify_product(self, a: Product, b: Product) -> None:
        # Equal factors at the inner end first: it keeps an outer factor that would otherwise have to be
        # split whole, e.g. (6, 4) against (2, 3, 4).
        if a.factors[-1] == b.factors[-1]:
            self._unify(Product(a.factors[:-1]), Product(b.factors[:-1]))
            return
        if a.factors[0].size < b.factors[0].size:
            a, b = b, a
        first, rest = b.factors[0], Product(b.factors[1:])
        head, tail = self._factor_at(a, first.size)
        self._unify(head, first)
        self._unify(tail, rest)
