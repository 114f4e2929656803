"""What a rule is, what it may say, and the one table they stand in.

A rule tells for one ATen operator how the index spaces of its output follow from those of its inputs.
It is called with the operator's arguments in schema order, every tensor as a `Value` (its dims) and every
symbolic size as its number, and returns the output's `Value` (or a plain tuple of dims, or a list for
several outputs). What depends on sizes that a cut changes (a view's shape, a split's sizes) it registers
with ``call.on_cut`` or ``call.resize``. Adding an operator is one function of a few lines in the file of
its family, and one test.

An operator without a rule freezes everything it touches: sound, and said by ``hwprune inspect``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from hwprune.structure.dims import ONE, Dim, MismatchError, Product, Space

Kept = Callable[[Dim], int]
"""Size of a dim after a cut."""
Edit = Callable[[fx.Node, Kept], None]
"""Rewrites the baked-in sizes of one node of the graph that is being cut."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the trace.

    ``zeros[d]``: wherever an index of dim d is removed, the masked model has zeros in that slice. Contracting
    two activations over a dim is exact only if one of them is zero there.
    """

    dims: tuple[Dim, ...]
    zeros: tuple[bool, ...]
    parameter: str | None = None

    def __getitem__(self, index: int) -> Dim:
        return self.dims[index]

    def __len__(self) -> int:
        return len(self.dims)


@dataclass(slots=True)
class Call:
    """One node while its rule runs."""

    space: Space
    node: fx.Node
    name: str
    outputs: list[tuple[int, ...]]
    inputs: list[Value] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
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

    # -- what a cut must rewrite -------------------------------------------------------------

    def on_cut(self, edit: Edit) -> None:
        self.edits.append(edit)

    def resize(self, argument: str, dims: Sequence[Dim]) -> None:
        """The list argument holds the sizes of ``dims``: rewrite those that a cut changes.

        A size that the trace computes from the batch size is replaced by -1, which is possible once.
        """
        entries = read_argument(self.node, argument)
        symbolic = [d for entry, d in zip(entries, dims, strict=True) if not isinstance(entry, int)]
        inferred = sum(isinstance(entry, int) and entry == -1 for entry in entries)
        changeable = [d for d in symbolic if not self.is_frozen(d)]
        if len(changeable) + inferred > 1:
            for dim in changeable:
                self.freeze(dim, "more than one of the sizes is computed at run time")

        def edit(node: fx.Node, kept: Kept) -> None:
            sizes = list(read_argument(node, argument))
            for position, (entry, dim) in enumerate(zip(sizes, dims, strict=True)):
                count = kept(dim)
                if count == dim.size:
                    continue
                if not isinstance(entry, int):
                    sizes[position] = -1
                elif entry != -1:
                    sizes[position] = count
            write_argument(node, argument, sizes)

        self.on_cut(edit)


def _schema_arguments(node: fx.Node) -> Sequence[Any]:
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    return target._schema.arguments


def read_argument(node: fx.Node, name: str) -> Any:
    """Value of a node's argument by its schema name, the default included."""
    for position, argument in enumerate(_schema_arguments(node)):
        if argument.name == name:
            if name in node.kwargs:
                return node.kwargs[name]
            return node.args[position] if position < len(node.args) else argument.default_value
    raise KeyError(name)


def write_argument(node: fx.Node, name: str, value: Any) -> None:
    """Set a node's argument by its schema name."""
    arguments = _schema_arguments(node)
    for position, argument in enumerate(arguments):
        if argument.name != name:
            continue
        if argument.kwarg_only or name in node.kwargs:
            node.update_kwarg(name, value)
            return
        args = list(node.args)
        args.extend(earlier.default_value for earlier in arguments[len(args) : position + 1])
        args[position] = value
        node.args = tuple(args)
        return
    raise KeyError(name)


Result = Value | tuple[Dim, ...] | list[Value]
Rule = Callable[..., Result]

RULES: dict[Any, Rule] = {}


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Enter a function into the table for these ATen overloads; operators of other libraries by ``namespace::name``."""

    def enter(function: Rule) -> Rule:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"two rules for {operator}")
            RULES[operator] = function
        return function

    return enter
