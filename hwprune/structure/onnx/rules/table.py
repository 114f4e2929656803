"""ONNX operators: the same algebra as for ATen, with another table.

A rule is called with an `OnnxCall`, which reads the node's inputs as `Value`s (``call.tensor(i)``), its integer
inputs as numbers (``call.integers(i)``) and its attributes, and returns the output's `Value` (or a list of them). What
depends on sizes that a cut changes it registers with ``call.resize_input`` or ``call.resize_attribute``. An operator
without a rule freezes everything that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from hwprune.structure.dims import Dim
from hwprune.structure.onnx.values import Array
from hwprune.structure.scope import Kept, Scope, Value

Numbers = Callable[[Kept], Sequence[int]]
"""The numbers that an integer input or attribute must hold after a cut."""


@dataclass(slots=True)
class OnnxCall(Scope):
    """One ONNX node while its rule runs.

    Attributes:
        tensors: the inputs in order; None for one that is left out.
        known: the inputs that are numbers known at analysis time, in order.
        quantised: quantised tensor -> name of the zero point that it was made with, and where it was zero before.
        mentioned: positions of the inputs that the rule has looked at; the others are frozen afterwards.
        inputs_after, attributes_after: what must stand there after a cut.
    """

    node: onnx.NodeProto = field(kw_only=True)
    opset: int = field(kw_only=True)
    options: Mapping[str, Any] = field(kw_only=True)
    tensors: Sequence[Value | None] = field(kw_only=True)
    known: Sequence[Array | None] = field(kw_only=True)
    inputs_after: dict[int, Numbers] = field(default_factory=dict)
    attributes_after: dict[str, Callable[[Kept], Any]] = field(default_factory=dict)
    quantised: Mapping[str, tuple[str, tuple[bool, ...]]] = field(kw_only=True)
    mentioned: set[int] = field(default_factory=set)

    def tensor(self, position: int) -> Value:
        """An input that must be there. Raises ValueError, which freezes what the node touches."""
        value = self.optional(position)
        if value is None:
            raise ValueError(f"input {position} is left out or of unknown shape")
        return value

    def mention_all(self) -> None:
        """Mark every input as looked at: the rule uses ``inputs`` as a whole."""
        self.mentioned.update(range(len(self.tensors)))

    def freeze_the_rest(self) -> None:
        """Freeze what the rule has not looked at: it is an argument (the scales of a Resize), not data."""
        for position, tensor in enumerate(self.tensors):
            if tensor is not None and position not in self.mentioned:
                for dim in tensor.dims:
                    self.freeze(dim, "is an argument")

    def optional(self, position: int) -> Value | None:
        self.mentioned.add(position)
        return self.tensors[position] if position < len(self.tensors) else None

    def integers(self, position: int, attribute: str | None = None) -> list[int] | None:
        """Whole numbers from an input, or from the attribute that older opsets have in its place; None if left out.

        Raises ValueError where they are computed at run time.
        """
        if position < len(self.node.input) and self.node.input[position]:
            value = self.known[position]
            if value is None:
                raise ValueError(f"input {position} is computed at run time")
            return [int(entry) for entry in value.reshape(-1)]
        if attribute is not None and attribute in self.options:
            given = self.options[attribute]
            return [int(given)] if isinstance(given, int) else [int(entry) for entry in given]
        return None

    def resize_input(self, position: int, numbers: Numbers) -> None:
        self.inputs_after[position] = numbers

    def resize_attribute(self, name: str, value: Callable[[Kept], Any]) -> None:
        self.attributes_after[name] = value

    def sizes_after(self, position: int, dims: Sequence[Dim], given: Sequence[int]) -> None:
        """The input holds the sizes of ``dims``; entries of 0 and -1 in ``given`` stay."""
        self.resize_input(
            position, lambda kept: [entry if entry in (0, -1) else kept(dim) for entry, dim in zip(given, dims, strict=True)]
        )


Result = Value | tuple[Dim, ...] | list[Value]
Rule = Callable[[OnnxCall], Result]

RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Enter a function into the table for these operators, ``Name`` or ``domain::Name``."""

    def enter(function: Rule) -> Rule:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"two rules for {operator}")
            RULES[operator] = function
        return function

    return enter
