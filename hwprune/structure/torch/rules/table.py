"""The rules: what one is, what it may say, and the one table they stand in.

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
from typing import Any, TypeVar

import torch
from torch import fx

from hwprune.structure.dims import Dim
from hwprune.structure.scope import Kept, Scope, Value
from hwprune.structure.symbols import PRIMES, factors

__all__ = ["RULES", "Call", "Edit", "Kept", "Result", "Rule", "Value", "read_argument", "rule", "write_argument"]

Edit = Callable[[fx.Node, Kept], None]
"""Rewrites the baked-in sizes of one node of the graph that is being cut."""


@dataclass(slots=True)
class Call(Scope):
    """One ATen node while its rule runs."""

    node: fx.Node = field(kw_only=True)
    edits: list[Edit] = field(default_factory=list)

    # -- what a cut must rewrite -------------------------------------------------------------

    def on_cut(self, edit: Edit) -> None:
        self.edits.append(edit)

    def resize(self, argument: str, dims: Sequence[Dim]) -> None:
        """The list argument holds the sizes of ``dims``: rewrite those that a cut changes.

        A size that the trace computes from the batch size is replaced by -1, which is possible once; a -1 that stands for a size
        that is known is replaced by that size then.
        """
        entries = read_argument(self.node, argument)
        symbolic = [d for entry, d in zip(entries, dims, strict=True) if not isinstance(entry, int)]
        inferred = sum(
            isinstance(entry, int) and entry == -1 and bool(factors(dim.size, PRIMES)[1])
            for entry, dim in zip(entries, dims, strict=True)
        )
        changeable = [d for d in symbolic if not self.is_frozen(d)]
        if len(changeable) + inferred > 1:
            for dim in changeable:
                self.freeze(dim, "more than one of the sizes is computed at run time")

        def edit(node: fx.Node, kept: Kept) -> None:
            sizes = list(read_argument(node, argument))
            computed = any(not isinstance(e, int) and kept(d) != d.size for e, d in zip(sizes, dims, strict=True))
            for position, (entry, dim) in enumerate(zip(sizes, dims, strict=True)):
                if computed and isinstance(entry, int) and entry == -1:
                    sizes[position] = kept(dim)
                count = kept(dim)
                if count == dim.size:
                    continue
                if not isinstance(entry, int):
                    sizes[position] = -1
                elif entry != -1 or computed:
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
_R = TypeVar("_R", bound=Rule)

RULES: dict[Any, Rule] = {}


def rule(*operators: Any) -> Callable[[_R], _R]:
    """Enter a function into the table for these ATen overloads; operators of other libraries by ``namespace::name``."""

    def enter(function: _R) -> _R:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"two rules for {operator}")
            RULES[operator] = function
        return function

    return enter
