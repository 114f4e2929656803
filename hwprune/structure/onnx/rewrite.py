"""The nodes of an ONNX graph after a cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwprune.structure.onnx.values import Array, attributes, evaluate
from hwprune.structure.onnx.walk import Edits, Walk
from hwprune.structure.scope import Kept
from hwprune.structure.symbols import factors


class Rewrite:
    """The nodes after a cut: attributes and integer inputs replaced where what they hold is no longer right."""

    def __init__(self, walk: Walk, kept: Kept) -> None:
        self.walk = walk
        self.kept = kept
        self.constants: list[TensorProto] = []
        self._actual: dict[str, Array | None] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._out: list[onnx.NodeProto] = []
        self._made = 0
        self._symbol_names: dict[int, str] = {}

    def nodes(self) -> list[onnx.NodeProto]:
        for number, node in enumerate(self.walk.model.graph.node):
            self._follow(node)
            # A shape computation is left to whoever reads its numbers as sizes or as data.
            sizes = number in self.walk.computes_sizes
            self._out.append(node if sizes else self._rewrite_node(node, self.walk.edits.get(number, Edits())))
        return self._out

    def _now(self, name: str) -> Array | None:
        """The numbers that a known tensor holds at run time after the cut."""
        return self._actual[name] if name in self._actual else self.walk.known.get(name)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        value = self.walk.values.get(name)
        if value is not None:
            return tuple(self.kept(dim) for dim in value.dims)
        now = self._now(name)
        return now.shape if now is not None else self.walk.shape(name)

    def _follow(self, node: onnx.NodeProto) -> None:
        name = node.output[0] if node.output else ""
        if name not in self.walk.known:
            return
        if node.op_type in ("Shape", "Size") or any(source in self._actual for source in node.input):
            now = evaluate(node, attributes(node), [self._now(source) if source else None for source in node.input], self._shape)
            if now is None or not np.array_equal(now, self.walk.known[name]):
                self._actual[name] = now

    def _rewrite_node(self, node: onnx.NodeProto, edits: Edits) -> onnx.NodeProto:
        changes = self._changed_inputs(node, edits)
        values: dict[str, Any] = {name: value(self.kept) for name, value in edits.attributes.items()}
        if not changes and not values:
            return node
        if changes and node.op_type == "Split":
            values["num_outputs"] = None  # the sizes say it
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for position, name in changes.items():
            copy.input.extend([""] * (position + 1 - len(copy.input)))
            copy.input[position] = name
        for attribute in list(copy.attribute):
            if attribute.name in values:
                copy.attribute.remove(attribute)
        copy.attribute.extend(helper.make_attribute(name, value) for name, value in values.items() if value is not None)
        return copy

    def _changed_inputs(self, node: onnx.NodeProto, edits: Edits) -> dict[int, str]:
        """Position -> name of what must be read there instead."""
        changes: dict[int, str] = {}
        for position, name in enumerate(node.input):
            dense = self.walk.known.get(name)
            if dense is None or not name:
                continue
            if position in edits.inputs:
                wanted = np.asarray(edits.inputs[position](self.kept), dtype=dense.dtype).reshape(dense.shape)
            elif name in self.walk.stored or (self.walk.values.get(name) is not None and name not in self._actual):
                continue  # an initializer, cut like every other
            else:
                wanted = dense  # a number computed from a size (a scale from head_dim) keeps its dense value
            now = self._now(name)
            if now is None or not np.array_equal(now, wanted):
                changes[position] = self._materialise(name, wanted)
        for position, numbers in edits.inputs.items():
            if position >= len(node.input) or not node.input[position]:  # a default that no longer holds
                changes[position] = self._emit_constant(np.asarray(numbers(self.kept), dtype=np.int64))
        return changes

    def _name(self) -> str:
        self._made += 1
        return f"hwprune_size_{self._made}"

    def _emit_constant(self, value: Array) -> str:
        name = self._name()
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def _emit(self, kind: str, inputs: Sequence[str], **options: Any) -> str:
        name = self._name()
        self._out.append(helper.make_node(kind, list(inputs), [name], name=name, **options))
        return name

    def _materialise(self, name: str, wanted: Array) -> str:
        """A tensor that holds ``wanted``, where primes stand for sizes known only at run time."""
        now = self._now(name)
        if now is not None and np.array_equal(now, wanted):
            return name
        if not any(factors(int(entry), self.walk.symbols)[1] for entry in wanted.reshape(-1)) or wanted.dtype.kind not in "iu":
            return self._emit_constant(wanted)
        producer = self.walk.producers.get(name)
        if producer is not None and producer.op_type == "Concat" and wanted.ndim == 1:
            sizes = [self.walk.known[part].size if part in self.walk.known else -1 for part in producer.input]
            if -1 not in sizes:
                pieces = np.split(wanted, np.cumsum(sizes)[:-1])
                names = [self._materialise(part, piece) for part, piece in zip(producer.input, pieces, strict=True)]
                return self._emit("Concat", names, axis=0)
        entries = [self._emit_entry(int(entry)) for entry in wanted.reshape(-1)]
        joined = entries[0] if len(entries) == 1 else self._emit("Concat", entries, axis=0)
        if wanted.shape != (len(entries),):
            joined = self._emit("Reshape", [joined, self._emit_constant(np.asarray(wanted.shape, dtype=np.int64))])
        if wanted.dtype != np.int64:
            joined = self._emit("Cast", [joined], to=helper.np_dtype_to_tensor_dtype(wanted.dtype))
        return joined

    def _emit_entry(self, number: int) -> str:
        """One number as a tensor of shape (1,): a constant times the run-time sizes that its primes stand for."""
        rest, primes = factors(number, self.walk.symbols)
        name = None if rest == 1 and primes else self._emit_constant(np.asarray([rest], dtype=np.int64))
        for prime in primes:
            size = self._size(prime)
            name = size if name is None else self._emit("Mul", [name, size])
        assert name is not None  # without primes there is the constant
        return name

    def _size(self, prime: int) -> str:
        if prime not in self._symbol_names:
            source, position = self.walk.symbols[prime]
            shape = self._emit("Shape", [source])
            self._symbol_names[prime] = self._emit(
                "Gather", [shape, self._emit_constant(np.asarray([position], dtype=np.int64))], axis=0
            )
        return self._symbol_names[prime]
