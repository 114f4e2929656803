"""The analysis of a model, which gives its `AxisGraph`: export once, then one pass of rules over the ATen graph.

One file because the pass is one class, and what starts it stands beside it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from hwprune.errors import TraceError
from hwprune.structure.dims import Dim, MismatchError, Space
from hwprune.structure.model_graph import Matrix
from hwprune.structure.symbols import PRIMES
from hwprune.structure.torch import token_graph
from hwprune.structure.torch.capture import capture, lookup
from hwprune.structure.torch.free_sizes import length_symbols
from hwprune.structure.torch.graph import AxisGraph
from hwprune.structure.torch.rules import RULES, Call, Edit, Value
from hwprune.structure.torch.rules.table import read_argument
from hwprune.structure.torch.token_graph import TokenGraph
from hwprune.structure.torch.work import WorkCount

WEIGHT_ARGUMENT: dict[Any, tuple[str, int]] = {
    torch.ops.aten.linear.default: ("linear", 1),
    torch.ops.aten.conv1d.default: ("conv", 1),
    torch.ops.aten.conv2d.default: ("conv", 1),
    torch.ops.aten.conv3d.default: ("conv", 1),
    torch.ops.aten.conv1d.padding: ("conv", 1),
    torch.ops.aten.conv2d.padding: ("conv", 1),
    torch.ops.aten.conv3d.padding: ("conv", 1),
    torch.ops.aten.addmm.default: ("product", 2),
    torch.ops.aten.matmul.default: ("product", 1),
    torch.ops.aten.mm.default: ("product", 1),
}
"""The kind of a layer by its operator, and the position of the weight among its arguments. A product's weight is (in, out)."""


_CONVERSIONS = (torch.ops.aten.to.dtype, torch.ops.aten._to_copy.default)


def trace(model: nn.Module, example_inputs: Sequence[torch.Tensor]) -> AxisGraph:
    """Trace ``model`` and find its axes.

    Args:
        model: in any mode, on any device; it is not changed. It is traced in eval mode.
        example_inputs: the positional inputs, first dim = batch. The batch stays free: the result runs at any
            batch size, where ``torch.export`` can prove that the model allows it.

    Raises:
        TraceError: ``torch.export`` can't trace the model (data-dependent control flow, for example).
    """
    return analyse(capture(model, example_inputs))


def analyse(module: fx.GraphModule) -> AxisGraph:
    """The axes of a captured model: one pass over its graph. Tokens are looked for when they are first asked for."""
    walk = _Walk(module)
    walk.run()
    return _graph(walk, lambda graph: _token_graph(graph, walk))


def _graph(walk: _Walk, tokens: Callable[[AxisGraph], TokenGraph] | None = None) -> AxisGraph:
    work = WorkCount(walk.work, walk.batch, walk.lengths)
    return AxisGraph(
        walk.module, walk.space, walk.parameters, walk.edits, walk.matrices, work, walk.unmasked, walk.values, tokens
    )


def _token_graph(graph: AxisGraph, walk: _Walk) -> TokenGraph:
    """The graph with borders at which tokens can be made fewer; the number of tokens is that of the example inputs."""
    lengths = length_symbols(walk.module)
    if lengths:
        walk = _Walk(walk.module, lengths)
        walk.run()
    found = token_graph.borders(graph, walk.space, walk.values)
    if isinstance(found, str):
        return TokenGraph(graph, {}, (), found)
    bordered = token_graph.bordered(walk.module, found)
    second = _Walk(bordered, lengths)
    second.run()
    return token_graph.token_graph(graph, _graph(second), found, second.token_dims)


class _Walk:
    """One pass in graph order.

    Args:
        lengths: free sizes that are taken for numbers.
    """

    def __init__(self, module: fx.GraphModule, lengths: Mapping[Any, int] | None = None) -> None:
        self.module = module
        self._lengths = lengths or {}
        self.token_dims: dict[tuple[str, str], Dim] = {}
        """(main node of a border, form) -> the tokens behind it."""
        self.space = Space()
        self.parameters: dict[str, Value] = {}
        self.edits: dict[str, list[Edit]] = {}
        self.matrices: list[Matrix] = []
        self.work: list[tuple[str, tuple[Dim, ...]]] = []
        self.unmasked: set[tuple[str, int]] = set()
        self.values: dict[fx.Node, Any] = {}
        self._tied: dict[int, Value] = {}
        self._numbers: dict[Any, int] = {}
        self._storage: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        for node in self.module.graph.nodes:
            self.values[node] = getattr(self, "_" + node.op)(node)

    @property
    def batch(self) -> frozenset[int]:
        """The numbers that stand for sizes known only at run time."""
        return frozenset(self._numbers.values())

    @property
    def lengths(self) -> dict[int, int]:
        """The numbers among them that stand for a number of tokens -> that of the example inputs."""
        known = length_symbols(self.module)
        return {number: known[symbol] for symbol, number in self._numbers.items() if symbol in known}

    def _number(self, value: Any) -> Any:
        """A plain number for a symbolic one."""
        if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return value
        expression = value.node.expr
        for symbol in sorted(expression.free_symbols - set(self._lengths), key=str):
            if symbol not in self._numbers:
                if len(self._numbers) == len(PRIMES):
                    raise TraceError(f"more than {len(PRIMES)} free sizes in one model")
                self._numbers[symbol] = PRIMES[len(self._numbers)]
        number = expression.subs({**self._numbers, **self._lengths})
        return bool(number) if isinstance(value, torch.SymBool) else int(number)

    def _sizes(self, tensor: Any) -> tuple[int, ...]:
        return tuple(self._number(size) for size in tensor.shape)

    def _fresh(self, tensor: torch.Tensor, reason: str | None, *, zero: bool = False, name: str | None = None) -> Value:
        dims = tuple(self.space.leaf(size) for size in self._sizes(tensor))
        if reason:
            for dim in dims:
                self.space.freeze(dim, reason)
        return Value(dims, (zero,) * len(dims), name)

    def _placeholder(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        return self._fresh(value, "model input") if isinstance(value, torch.Tensor) else self._number(value)

    def _get_attr(self, node: fx.Node) -> Any:
        name = str(node.target)
        tensor = lookup(self.module, name)
        if not isinstance(tensor, torch.Tensor):
            return tensor
        if id(tensor) not in self._tied:  # tied parameters are one tensor: one set of axes
            whole = not (tensor.is_floating_point() or tensor.is_complex()) and not self._is_scaled(node)
            reason = "its numbers are part of the graph" if whole else None
            self._tied[id(tensor)] = self._fresh(tensor, reason, zero=True, name=name)
        self.parameters[name] = self._tied[id(tensor)]
        return self._tied[id(tensor)]

    def _is_scaled(self, node: fx.Node) -> bool:
        """Are whole numbers read as quantised ones alone: turned into floating point, or as zero points?"""
        readers = [
            user
            for other in self.module.graph.nodes
            if other.op == "get_attr" and other.target == node.target
            for user in other.users
        ]
        return all(
            str(user.target) == "hwprune.fake_quantize.default"
            or (user.target in _CONVERSIONS and user.meta["val"].is_floating_point())
            for user in readers
        )

    def _output(self, node: fx.Node) -> None:
        for value in self._collect(self._read(node.args)):
            for dim in value.dims:
                self.space.freeze(dim, "model output")

    def _call_module(self, node: fx.Node) -> Any:
        return self._give_up(node, f"{node.target} is a nested graph")

    def _call_function(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if (crossing := node.meta.get(token_graph.CROSSING)) is not None:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            return crossing.behind(self.values[source], self.token_dims, self.space)
        if node.target is operator.getitem:
            origin = node.args[0]
            assert isinstance(origin, fx.Node)
            source = self.values[origin]
            self._storage[node] = self._storage.get(origin, origin)
            if isinstance(source, list):
                return source[node.args[1]]  # type: ignore[index]  # and its index an int
            return self._give_up(node, "takes one item of an unknown result")
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)):
            return self._number(value)
        rule = RULES.get(node.target) or RULES.get(getattr(getattr(node.target, "_schema", None), "name", None))
        if rule is None:
            return self._give_up(node, f"no rule for {node.target}")
        assert isinstance(node.target, torch._ops.OpOverload)
        shapes = [self._sizes(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
        short = str(node.target.overloadpacket).removeprefix("aten.")
        arguments = [self._read(read_argument(node, a.name)) for a in node.target._schema.arguments]
        call = Call(self.space, f"{short} ({node.name})", shapes, self._collect(arguments), node=node)
        try:
            result = rule(call, *arguments)
            if isinstance(result, tuple):
                result = Value(result, (False,) * len(result))
            self._check(result, shapes)
        except (ValueError, IndexError, TypeError, KeyError, MismatchError) as error:
            # A gap in a rule costs prunability, never a crash.
            return self._give_up(node, f"the rule for {short} does not cover this use ({type(error).__name__}: {error})")
        self.work += [(node.name, dims) for dims in call.work]
        self.unmasked.update(call.unmasked)
        if call.edits:
            self.edits[node.name] = call.edits
        self._note_matrix(node)
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node):
            self._storage[node] = self._storage.get(source, source)  # it may be a view of its first input
            if node.target._schema.name.endswith("_"):
                self._forget_zeros(node, source, result)
                self.values[source] = result  # in place: the input has become the output
        return result

    def _forget_zeros(self, node: fx.Node, source: fx.Node, written: Any) -> None:
        """Forget the zeros of whatever may share the storage that an in-place operator changed, but those that it wrote."""
        storage = self._storage.get(source, source)

        def after(value: Value) -> Value:
            zeros = tuple(zero and self._wrote_zeros(dim, written) for dim, zero in zip(value.dims, value.zeros, strict=True))
            return Value(value.dims, zeros, value.parameter)

        for other, value in self.values.items():
            if self._storage.get(other, other) is not storage or other is node:
                continue
            if isinstance(value, Value):
                self.values[other] = after(value)
            elif isinstance(value, list):
                self.values[other] = [after(v) if isinstance(v, Value) else v for v in value]

    def _wrote_zeros(self, dim: Dim, written: Any) -> bool:
        """Is what was written zero where an index of ``dim`` is removed, or can none be?"""
        mine = {leaf.number for leaf in self.space.leaves(dim)}
        if all(self.space.frozen_number(number) for number in mine):
            return True
        if not isinstance(written, Value):
            return False
        carrying = [
            zero
            for part, zero in zip(written.dims, written.zeros, strict=True)
            if mine & {leaf.number for leaf in self.space.leaves(part)}
        ]
        return bool(carrying) and all(carrying)

    @staticmethod
    def _check(result: Value | list[Value], shapes: list[tuple[int, ...]]) -> None:
        for value, shape in zip(result if isinstance(result, list) else [result], shapes, strict=True):
            sizes = tuple(dim.size for dim in value.dims)
            if sizes != shape:
                raise ValueError(f"it gave sizes {sizes} where the trace has {shape}")

    def _note_matrix(self, node: fx.Node) -> None:
        kind, position = WEIGHT_ARGUMENT.get(node.target, ("", 0))
        source = node.args[position] if kind else None
        weight = self.values.get(source) if isinstance(source, fx.Node) else None
        if not isinstance(weight, Value) or weight.parameter is None or (kind == "product" and len(weight) != 2):
            return
        if not isinstance(lookup(self.module, weight.parameter), nn.Parameter):
            return  # a fixed filter in a buffer is not for pruning
        if all(matrix.parameter != weight.parameter for matrix in self.matrices):
            groups = read_argument(node, "groups") if kind == "conv" else 1
            shape = tuple(dim.size for dim in weight.dims)
            transposed = kind == "product"
            self.matrices.append(Matrix(weight.parameter, kind, shape[::-1] if transposed else shape, groups, transposed))

    def _give_up(self, node: fx.Node, reason: str) -> Any:
        for value in self._collect([self._read(node.args), self._read(dict(node.kwargs))]):
            for dim in value.dims:
                self.space.freeze(dim, reason)
        meta = node.meta.get("val")
        if isinstance(meta, torch.Tensor):
            return self._fresh(meta, reason)
        if isinstance(meta, (list, tuple)):
            return [self._fresh(v, reason) if isinstance(v, torch.Tensor) else self._number(v) for v in meta]
        return self._number(meta)

    def _read(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, (list, tuple)):
            return [self._read(item) for item in argument]
        if isinstance(argument, dict):
            return [self._read(item) for item in argument.values()]
        return argument

    def _collect(self, argument: Any) -> list[Value]:
        if isinstance(argument, Value):
            return [argument]
        if isinstance(argument, (list, tuple)):
            return [value for item in argument for value in self._collect(item)]
        return []
