"""From a model to its `AxisGraph`: export once, then one pass of rules over the ATen graph."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import operator
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from hwprune.errors import TraceError
from hwprune.structure.dims import Dim, MismatchError, Space
from hwprune.structure.graph import AxisGraph, Matrix, assign
from hwprune.structure.rules import RULES, Call, Edit, Value
from hwprune.structure.rules.table import read_argument
from hwprune.structure.symbols import PRIMES

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
"""What a layer's weight is to its operator: kind and position. A product's weight is (in, out)."""

_GLOBAL_POOLS = (
    torch.ops.aten.adaptive_avg_pool1d.default,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.adaptive_avg_pool3d.default,
)

_TRAINING_FLAG: dict[Any, int] = {
    torch.ops.aten.batch_norm.default: 5,
    torch.ops.aten.dropout.default: 2,
    torch.ops.aten.dropout_.default: 2,
    torch.ops.aten.feature_dropout.default: 2,
    torch.ops.aten.feature_dropout_.default: 2,
}
"""Position of the flag that ``train()`` and ``eval()`` switch."""


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
    """The axes of a captured model: one pass over its graph."""
    walk = _Walk(module)
    walk.run()
    return AxisGraph(
        module, walk.space, walk.parameters, walk.edits, walk.matrices, walk.work, walk.batch, walk.unmasked, walk.values
    )


def capture(model: nn.Module, example_inputs: Sequence[torch.Tensor]) -> fx.GraphModule:
    """The ATen graph of ``model`` as a module with the model's own tensors; arguments and errors as for `trace`."""
    inputs = tuple(example_inputs)
    was_training = {name: module.training for name, module in model.named_modules()}
    model.eval()
    try:
        module = _any_batch(model, inputs)
    except Exception as error:  # torch.export raises whatever the model's own code raises
        raise TraceError(
            f"torch.export can't trace {type(model).__name__}: {_plain_words(error)}. "
            "Structural pruning needs a forward without Python branches on tensor values, and example_inputs that it accepts "
            "(first dimension = batch)."
        ) from error
    finally:
        for name, part in model.named_modules():
            part.training = was_training[name]
    free = has_free_batch(module)
    own = _own(module, model)
    own.meta["free_batch"] = free
    return own


def _plain_words(error: Exception) -> str:
    """What torch.export complains about, as people would say it."""
    kind, text = type(error).__name__, str(error).strip()
    first = text.splitlines()[0] if text else ""
    if "DataDependent" in kind or "data-dependent" in text:
        match = re.search(r"File: (.+?):(\d+) in \w+, code: (.+)", text) or re.search(
            r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)', text
        )
        place = f" (line {match[2]} of {match[1].rpartition('/')[2]}: {match[3].strip()})" if match else ""
        return f"its forward takes a Python branch, or makes a size, from the values of a tensor{place}"
    return f"{kind}: {first}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """torch.export prints and logs whole graphs when it gives up; the reason is in its exception."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _any_batch(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> fx.GraphModule:
    """Captured with a free batch, or at the given one if the model fixes it (len(x), a baked-in size)."""
    try:
        module = _exported(model, *free_batch(model, inputs))
    except Exception as error:  # torch.export raises whatever the model's own code raises
        try:
            return _exported(model, inputs, None)
        except Exception:
            raise error from None  # the first is about what the model's code does, not about the batch
    return module if has_free_batch(module) else _exported(model, inputs, None)


def _exported(model: nn.Module, inputs: tuple[torch.Tensor, ...], shapes: Any) -> fx.GraphModule:
    with _silent():
        program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False)
        module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def has_free_batch(module: fx.GraphModule) -> bool:
    """Does the captured graph run at any batch size?"""
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor) and value.ndim:
            batch = value.shape[0]
            if isinstance(batch, torch.SymInt) and batch.node.expr.free_symbols:  # a specialised one has none left
                return True
    return False


def free_batch(model: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], Any]:
    """(inputs to trace with, dynamic_shapes) that leave the first dim free.

    torch.export specialises a batch of 1, so it is doubled; but not where only some inputs have a first dim of 1 (then
    it is no batch).
    """
    tensors = tuple(inputs)
    if all(x.shape[0] == 1 for x in tensors if x.ndim):
        tensors = tuple(torch.cat([x, x]) if x.ndim else x for x in tensors)
    shapes: tuple[Any, ...] = tuple({0: torch.export.Dim.AUTO} if x.ndim else None for x in tensors)
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    packed = kinds and kinds[0] == inspect.Parameter.VAR_POSITIONAL
    return tensors, (shapes,) if packed else shapes


def _own(exported: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """A plain GraphModule with the model's state under its own names that obeys train() and eval()."""
    graph = exported.graph
    _inline(exported)
    for node in list(graph.nodes):
        if (node.op == "call_module" and not node.users) or node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is torch.ops.aten.view.default:
            # Strides may differ after a cut (another attention kernel): reshape copies where view would fail.
            node.target = torch.ops.aten.reshape.default
        elif node.target is torch.ops.aten.squeeze.default:
            # An axis that is cut to a single index, or a batch of one, must not vanish.
            shape = node.args[0].meta["val"].shape
            node.target = torch.ops.aten.squeeze.dims
            node.args = (node.args[0], [position for position, size in enumerate(shape) if isinstance(size, int) and size == 1])
        elif node.target in _GLOBAL_POOLS and all(size == 1 for size in node.args[1]):
            # The same value, and ONNX exporters write the pooling with a table of strides.
            node.target = torch.ops.aten.mean.dim
            node.args = (node.args[0], list(range(-len(node.args[1]), 0)), True)
    graph.eliminate_dead_code()  # what nothing reads must not constrain an axis
    # Only what was off in eval follows train(): dropout that is always on, or statistics never tracked, stay so.
    flags = [n for n in graph.nodes if n.target in _TRAINING_FLAG and n.args[_TRAINING_FLAG[n.target]] is False]
    if flags:
        with graph.inserting_before(next(iter(graph.nodes))), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fx expects a parameter or a module behind get_attr; a flag works too
            training = graph.get_attr("training")
        for node in flags:
            args = list(node.args)
            args[_TRAINING_FLAG[node.target]] = training
            node.args = tuple(args)
    module = fx.GraphModule(exported, graph, class_name=type(model).__name__)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and _lookup(module, name) is None:
            assign(module, name, tensor)
    persistent = set(model.state_dict())
    for name, tensor in list(module.named_buffers()):
        if name not in persistent:
            assign(module, name, tensor, persistent=False)
    module.eval()
    return module


def _inline(module: fx.GraphModule) -> None:
    """Replace the nested graphs that ``torch.no_grad()`` and switched-off autocast leave by their nodes."""
    graph = module.graph
    changed = True
    while changed:  # a nested graph may hold another
        changed = False
        for node in list(graph.nodes):
            if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
                detach, inner = not node.args[0], node.args[1]
            elif node.target is torch.ops.higher_order.wrap_with_autocast and not node.args[2]:
                detach, inner = False, node.args[4]
            else:
                continue
            arguments = node.args[node.args.index(inner) + 1 :]
            _paste(graph, node, _lookup(module, str(inner.target)), arguments, detach)
            changed = True
    graph.eliminate_dead_code()


def _paste(graph: fx.Graph, node: fx.Node, nested: fx.GraphModule, arguments: Sequence[Any], detach: bool) -> None:
    """The nodes of ``nested`` before ``node``, and ``node`` gone; detached outputs stand for no_grad."""
    feed = iter(arguments)
    new: dict[fx.Node, Any] = {}
    results: Sequence[Any] = ()
    with graph.inserting_before(node):
        for old in nested.graph.nodes:
            if old.op == "placeholder":
                new[old] = next(feed)
            elif old.op == "output":
                results = [new[value] if isinstance(value, fx.Node) else value for value in old.args[0]]
            else:
                new[old] = graph.node_copy(old, lambda argument: new[argument])
        if detach:
            results = [_detached(graph, value) for value in results]
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]  # a getitem's index is an int
        graph.erase_node(user)
    graph.erase_node(node)


def _detached(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    node = graph.call_function(torch.ops.aten.detach.default, (value,))
    node.meta = dict(value.meta)
    return node


def _lookup(module: nn.Module, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


class _Walk:
    """One pass in graph order."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
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

    def _number(self, value: Any) -> Any:
        """A plain number for a symbolic one."""
        if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return value
        expression = value.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in self._numbers:
                if len(self._numbers) == len(PRIMES):
                    raise TraceError(f"more than {len(PRIMES)} free sizes in one model")
                self._numbers[symbol] = PRIMES[len(self._numbers)]
        number = expression.subs(self._numbers)
        return bool(number) if isinstance(value, torch.SymBool) else int(number)

    def _sizes(self, tensor: Any) -> tuple[int, ...]:
        return tuple(self._number(size) for size in tensor.shape)

    def _fresh(self, tensor: torch.Tensor, reason: str | None, zero: bool = False, name: str | None = None) -> Value:
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
        tensor = _lookup(self.module, name)
        if not isinstance(tensor, torch.Tensor):
            return tensor
        if id(tensor) not in self._tied:  # tied parameters are one tensor: one set of axes
            whole = not (tensor.is_floating_point() or tensor.is_complex())
            reason = "its numbers are part of the graph" if whole else None
            self._tied[id(tensor)] = self._fresh(tensor, reason, zero=True, name=name)
        self.parameters[name] = self._tied[id(tensor)]
        return self._tied[id(tensor)]

    def _output(self, node: fx.Node) -> None:
        for value in self._collect(self._read(node.args)):
            for dim in value.dims:
                self.space.freeze(dim, "model output")

    def _call_module(self, node: fx.Node) -> Any:
        return self._unknown(node, f"{node.target} is a nested graph")

    def _call_function(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if node.target is operator.getitem:
            origin = node.args[0]
            assert isinstance(origin, fx.Node)
            source = self.values[origin]
            self._storage[node] = self._storage.get(origin, origin)
            if isinstance(source, list):
                return source[node.args[1]]  # type: ignore[index]  # and its index an int
            return self._unknown(node, "takes one item of an unknown result")
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)):
            return self._number(value)
        rule = RULES.get(node.target) or RULES.get(getattr(getattr(node.target, "_schema", None), "name", None))
        if rule is None:
            return self._unknown(node, f"no rule for {node.target}")
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
            return self._unknown(node, f"the rule for {short} does not cover this use ({type(error).__name__}: {error})")
        self.work += [(node.name, dims) for dims in call.work]
        self.unmasked.update(call.unmasked)
        if call.edits:
            self.edits[node.name] = call.edits
        self._note_matrix(node)
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node):
            self._storage[node] = self._storage.get(source, source)  # it may be a view of its first input
            if node.target._schema.name.endswith("_"):
                self._written(node, source)
                self.values[source] = result  # in place: the input has become the output
        return result

    def _written(self, node: fx.Node, source: fx.Node) -> None:
        """Whatever may share the storage that an in-place operator changed is no longer known to be zero."""
        storage = self._storage.get(source, source)
        for other, value in self.values.items():
            if self._storage.get(other, other) is not storage or other is node:
                continue
            if isinstance(value, Value):
                self.values[other] = Value(value.dims, (False,) * len(value), value.parameter)
            elif isinstance(value, list):
                self.values[other] = [Value(v.dims, (False,) * len(v), v.parameter) if isinstance(v, Value) else v for v in value]

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
        if not isinstance(_lookup(self.module, weight.parameter), nn.Parameter):
            return  # a fixed filter in a buffer is not for pruning
        if all(matrix.parameter != weight.parameter for matrix in self.matrices):
            groups = read_argument(node, "groups") if kind == "conv" else 1
            shape = tuple(dim.size for dim in weight.dims)
            transposed = kind == "product"
            self.matrices.append(Matrix(weight.parameter, kind, shape[::-1] if transposed else shape, groups, transposed))

    def _unknown(self, node: fx.Node, reason: str) -> Any:
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
