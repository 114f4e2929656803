"""`OnnxGraph`: an ONNX model with its axes, and how to cut or mask it in milliseconds.

The algebra is the one of the traced PyTorch graph, the rules are those of `hwprune.structure.onnx_rules`. Shape
computations that exporters write out as operators are followed as numbers: what a cut makes of them is compared with
what the operators need, and only what differs is rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, inliner, numpy_helper

from hwprune.errors import UsageError
from hwprune.structure import branches
from hwprune.structure.axes import Axis, AxisTable
from hwprune.structure.branches import Branch, Dag
from hwprune.structure.dims import BoolArray, MismatchError, Space
from hwprune.structure.onnx_rules import RULES, OnnxCall
from hwprune.structure.onnx_rules.table import Numbers
from hwprune.structure.onnx_values import LIMIT, Array, attributes, evaluate, is_small
from hwprune.structure.scope import Kept, Value
from hwprune.structure.symbols import PRIMES, factors

MIN_OPSET = 13
_SAME_SHAPE = frozenset(
    (
        "GroupNormalization",
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "RMSNormalization",
        "Gelu",
        "FastGelu",
        "QuickGelu",
    )
)
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(slots=True)
class _Edits:
    inputs: dict[int, Numbers] = field(default_factory=dict)
    attributes: dict[str, Callable[[Kept], Any]] = field(default_factory=dict)


class OnnxGraph:
    """An analysed ONNX model; never changes.

    Attributes:
        model: the flat form that cuts are made from: functions inlined, Constant nodes turned into initializers.
        axes: every axis that an initializer carries.

    Raises:
        UsageError: an opset before 13, or a model that isn't valid ONNX.
    """

    def __init__(
        self, model: onnx.ModelProto, named: Collection[str] = (), sizes: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        """Analyse a model.

        Args:
            named: initializers that stay one tensor even where all their entries are equal (see `flatten`).
            sizes: input name -> shape, for models whose free sizes are free only in name.
        """
        self.model = flatten(model, named)
        walk = _Walk(self.model, sizes or {})
        walk.run()
        self.walk = walk
        self._space = walk.space
        self.table = AxisTable(walk.space, walk.stored)
        self.axes: tuple[Axis, ...] = self.table.axes
        self._branches: tuple[Branch, ...] | None = None

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Sides of sums that may be dropped as a whole; found when first asked for."""
        if self._branches is None:
            self._branches = branches.find(_dag(self.model, self.walk.values))
        return self._branches

    @property
    def unclear(self) -> list[str]:
        """Tensors whose sizes the analysis could not find out."""
        return [name for node in self.model.graph.node for name in node.output if name and self.walk.shape(name) is None]

    def masks_for(self, shapes: Mapping[str, Sequence[BoolArray]]) -> dict[int, BoolArray] | None:
        """Leaf masks from the keep masks of initializers' dims, or None if no leaf masks give exactly these.

        Args:
            shapes: initializer name -> one keep mask a dim.
        """
        masks: dict[int, BoolArray] = {}
        for name, keeps in shapes.items():
            for dim, keep in zip(self.table.parameters[name].dims, keeps, strict=True):
                self.table.project(dim, keep, masks)
        if any(self._space.frozen_number(number) for number in masks):
            return None
        for name, keeps in shapes.items():
            for dim, keep in zip(self.table.parameters[name].dims, keeps, strict=True):
                if not np.array_equal(self._space.keep(dim, masks), keep):
                    return None
        return masks

    def cut(self, keeps: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
        """The model with the removed indices physically gone; arguments and errors as `AxisGraph.cut`."""
        return self.cut_leaves(self.table.masks(keeps))

    def cut_leaves(
        self, masks: Mapping[int, BoolArray], tensors: Mapping[str, Array] | None = None, drop: Sequence[Branch] = ()
    ) -> onnx.ModelProto:
        """Cut by leaf masks.

        Args:
            drop: branches that go.
            tensors: initializer name -> its new contents, already in the new shape; the others are selected from.
        """
        counts = {number: int(mask.sum()) for number, mask in masks.items()}
        rewrite = _Rewrite(self.walk, lambda dim: self._space.kept(dim, counts))
        nodes = rewrite.nodes() if masks else [*self.model.graph.node]
        nodes = _without(nodes, drop)
        given = tensors or {}
        initializers = []
        for item in self.model.graph.initializer:
            value = self.table.parameters.get(item.name)
            if item.name in given:
                initializers.append(numpy_helper.from_array(np.ascontiguousarray(given[item.name]), item.name))
            elif value is None or not (touched := self.table.touched(value, masks)):
                initializers.append(item)
            else:
                array = numpy_helper.to_array(item)
                for position, keep in touched:
                    array = array.compress(keep, axis=position)
                initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), item.name))
        return self._assemble(nodes, [*initializers, *rewrite.constants])

    def mask(self, keeps: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
        """The model in its original shapes with the removed slices of every initializer zeroed."""
        masks = self.table.masks(keeps)
        initializers = []
        for item in self.model.graph.initializer:
            value = self.table.parameters.get(item.name)
            touched = self.table.touched(value, masks) if value is not None else []
            if touched:
                array = numpy_helper.to_array(item).copy()
                for position, keep in touched:
                    np.moveaxis(array, position, 0)[~keep] = 0
                item = numpy_helper.from_array(array, item.name)  # noqa: PLW2901 - the masked form of the same tensor
            initializers.append(item)
        return self._assemble([*self.model.graph.node], initializers)

    def _assemble(self, nodes: Sequence[onnx.NodeProto], initializers: Sequence[TensorProto]) -> onnx.ModelProto:
        """A model of these nodes and initializers, without what nothing reads."""
        graph = self.model.graph
        needed = {item.name for item in graph.output}
        kept = []
        for node in reversed(nodes):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(name for name in node.input if name)
                needed.update(captured(node))
        made = helper.make_graph(
            kept[::-1], graph.name, list(graph.input), list(graph.output), [item for item in initializers if item.name in needed]
        )
        model = onnx.ModelProto()
        model.CopyFrom(_shell(self.model))
        model.graph.CopyFrom(made)
        return model


def _without(nodes: Sequence[onnx.NodeProto], drop: Sequence[Branch]) -> list[onnx.NodeProto]:
    """The nodes with each dropped branch's sum turned into its other operand."""
    sides = {branch.name: branch.side for branch in drop}
    result = []
    for node in nodes:
        if node.output and node.output[0] in sides:
            stays = node.input[1 - sides[node.output[0]]]
            result.append(helper.make_node("Identity", [stays], [node.output[0]], name=node.name))
        else:
            result.append(node)
    return result


def _dag(model: onnx.ModelProto, values: Mapping[str, Value | None]) -> Dag:
    """The graph as names, for finding branches."""
    nodes: dict[str, list[str]] = {item.name: [] for item in (*model.graph.input, *model.graph.initializer)}
    tensors = {item.name: item.name for item in model.graph.initializer}
    weights = {item.name for item in model.graph.initializer if len(item.dims) > 1 and item.data_type in FLOATS}
    data = {item.name for item in model.graph.input if item.type.tensor_type.elem_type in FLOATS}
    sums: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        inputs = [name for name in node.input if name] + sorted(captured(node))
        for name in node.output:
            nodes[name] = inputs
        value = values.get(node.output[0])
        if value is None:
            continue
        if not all(name in tensors for name in inputs):
            data.add(node.output[0])
        if node.op_type == "Add":
            sides = [values.get(name) for name in node.input]
            same = all(one is not None and [d.size for d in one.dims] == [d.size for d in value.dims] for one in sides)
            if same and all(name in data for name in node.input):
                sums[node.output[0]] = (node.input[0], node.input[1])
    return Dag(nodes, [item.name for item in model.graph.output], tensors, frozenset(weights), sums, frozenset(data), {})


def _shell(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its graph."""
    shell = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    shell.opset_import.extend(model.opset_import)
    return shell


def flatten(model: onnx.ModelProto, named: Collection[str] = ()) -> onnx.ModelProto:
    """Functions inlined, Constant nodes as initializers, constants of equal entries one for each use.

    Exporters share a vector of ones among all the normalisations that need one; as one tensor it would tie their axes.
    """
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        raise UsageError(
            f"the ONNX model has opset {opset}; hwprune reads {MIN_OPSET} and newer. "
            "onnx.version_converter.convert_version(model, 17) brings it there"
        )
    if model.functions:
        model = inliner.inline_local_functions(model)
    flat = _shell(model)
    flat.graph.CopyFrom(model.graph)
    del flat.graph.node[:]
    del flat.graph.value_info[:]
    names = {item.name for item in model.graph.initializer}
    for node in model.graph.node:
        tensor = _constant(node) if node.op_type == "Constant" else None
        if tensor is None:
            flat.graph.node.append(node)
        elif node.output[0] not in names:
            flat.graph.initializer.append(tensor)
    for item in flat.graph.initializer:
        if item.data_location == TensorProto.EXTERNAL:
            raise UsageError("the ONNX model's external data was not loaded with it")
    _divide_constants(flat.graph, named)
    _divide_fills(flat.graph)
    inputs = [item for item in flat.graph.input if item.name not in {t.name for t in flat.graph.initializer}]
    del flat.graph.input[:]
    flat.graph.input.extend(inputs)
    return flat


def _divide_constants(graph: onnx.GraphProto, named: Collection[str]) -> None:
    stored = {item.name: item for item in graph.initializer}
    seen: set[str] = set()
    for node in graph.node:
        for position, name in enumerate(node.input):
            item = stored.get(name)
            if item is None or name in named or not 1 < int(np.prod(item.dims)) <= LIMIT or item.data_type not in FLOATS:
                continue
            if name not in seen:
                seen.add(name)
                continue
            array = numpy_helper.to_array(item)
            if (array == array.reshape(-1)[0]).all():
                copy = TensorProto()
                copy.CopyFrom(item)
                copy.name = f"{name}_{node.output[0]}"  # names of outputs are unique
                graph.initializer.append(copy)
                node.input[position] = copy.name


def _divide_fills(graph: onnx.GraphProto) -> None:
    """Tensors filled with one number, one for each use: a state of zeros shared by two layers would tie their axes."""
    scalars = {item.name for item in graph.initializer if int(np.prod(item.dims)) == 1}
    fills: dict[str, onnx.NodeProto] = {}
    seen: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name not in fills:
                continue
            if name not in seen:
                seen.add(name)
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(fills[name])
            copy.output[0] = f"{name}_{node.output[0]}"
            copy.name = copy.output[0]
            nodes.append(copy)
            node.input[position] = copy.output[0]
        if node.op_type == "ConstantOfShape" or (node.op_type == "Expand" and node.input[0] in scalars):
            fills[node.output[0]] = node
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    options = attributes(node)
    name = node.output[0]
    if "value" in options:
        tensor = TensorProto()
        tensor.CopyFrom(options["value"])
        tensor.name = name
        return tensor
    for key, dtype in (
        ("value_ints", np.int64),
        ("value_int", np.int64),
        ("value_floats", np.float32),
        ("value_float", np.float32),
    ):
        if key in options:
            return numpy_helper.from_array(np.asarray(options[key], dtype=dtype), name)
    return None


def captured(node: onnx.NodeProto) -> set[str]:
    """Names of outer tensors that the node's subgraphs may read."""
    found: set[str] = set()
    for attribute in node.attribute:
        for graph in (
            [attribute.g, *attribute.graphs] if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) else []
        ):
            for inner in graph.node:
                found.update(name for name in inner.input if name)
                found |= captured(inner)
            found.update(item.name for item in graph.output)
    return found


class _Walk:
    """One pass in graph order: the dims of every tensor, and the numbers of the shape computations."""

    def __init__(self, model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]]) -> None:
        self.model = model
        self._sizes = sizes
        self.space = Space()
        self.values: dict[str, Value | None] = {}
        self.stored: dict[str, Value] = {}
        self.known: dict[str, Array] = {}
        self.edits: dict[int, _Edits] = {}
        self.computes_sizes: set[int] = set()
        self.producers: dict[str, onnx.NodeProto] = {}
        self.symbols: dict[int, tuple[str, int]] = {}
        """Prime -> the graph input and dim whose run-time size it stands for."""
        self.opset = {item.domain: item.version for item in model.opset_import}
        self._types: dict[str, onnx.TypeProto] = {}
        self._small: dict[str, TensorProto] = {}
        self._quantised: dict[str, tuple[str, tuple[bool, ...]]] = {}
        self._names: dict[str, int] = {}

    def run(self) -> None:
        for item in self.model.graph.input:
            self._input(item)
        for tensor in self.model.graph.initializer:
            self._initializer(tensor)
        for number, node in enumerate(self.model.graph.node):
            for name in node.output:
                self.producers[name] = node
            self._node(number, node)
        for output in self.model.graph.output:
            self._freeze(output.name, "model output")

    def shape(self, name: str) -> tuple[int, ...] | None:
        kind = self._types.get(name)
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return None
        sizes = []
        for dim in kind.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                return None
            sizes.append(dim.dim_value)
        return tuple(sizes)

    def _input(self, item: onnx.ValueInfoProto) -> None:
        """Sizes that are free get a prime each; the same name the same prime."""
        kind = onnx.TypeProto()
        kind.CopyFrom(item.type)
        for position, dim in enumerate(kind.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            if item.name in self._sizes:
                dim.dim_value = int(self._sizes[item.name][position])
                continue
            key = dim.dim_param or f"{item.name}:{position}"
            if key not in self._names:
                if len(self._names) == len(PRIMES):
                    raise UsageError(f"the ONNX model has more than {len(PRIMES)} free sizes")
                self._names[key] = PRIMES[len(self._names)]
                self.symbols[self._names[key]] = (item.name, position)
            dim.dim_value = self._names[key]
        self._types[item.name] = kind
        self.values[item.name] = self._fresh(item.name, "model input")

    def _initializer(self, tensor: TensorProto) -> None:
        self._types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        if int(np.prod(tensor.dims)) <= LIMIT:
            self._small[tensor.name] = tensor
            array = numpy_helper.to_array(tensor)
            if is_small(array):
                self.known[tensor.name] = array
        whole = tensor.data_type not in FLOATS
        numbers = tensor.name in self.known and whole and tensor.data_type not in (TensorProto.INT8, TensorProto.UINT8)
        value = self._fresh(
            tensor.name, "its numbers are part of the graph" if numbers else None, zero=True, parameter=tensor.name
        )
        assert value is not None
        self.values[tensor.name] = self.stored[tensor.name] = value

    def _fresh(self, name: str, reason: str | None, zero: bool = False, parameter: str | None = None) -> Value | None:
        shape = self.shape(name)
        if shape is None:
            return None
        dims = tuple(self.space.leaf(size) for size in shape)
        for dim in dims if reason else ():
            self.space.freeze(dim, str(reason))
        return Value(dims, (zero,) * len(dims), parameter)

    def _freeze(self, name: str, reason: str) -> None:
        value = self.values.get(name)
        for dim in value.dims if value is not None else ():
            self.space.freeze(dim, reason)

    def _node(self, number: int, node: onnx.NodeProto) -> None:
        options = attributes(node)
        numbers = [self.known.get(name) if name else None for name in node.input]
        self._infer(node)
        result = evaluate(node, options, numbers, self.shape)
        if result is not None:
            self.known[node.output[0]] = result
            if result.size == 1 or result.dtype.kind in "iub":
                self._types.setdefault(
                    node.output[0], helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(result.dtype), result.shape)
                )
                self.computes_sizes.add(number)
                return  # read as data its dims are numbers of the graph
        nested = captured(node)
        key = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        rule = RULES.get(key)
        shapes = [self.shape(name) for name in node.output if name]
        if rule is None or nested or any(shape is None for shape in shapes):
            for name in nested:
                self._freeze(name, f"{node.op_type} ({node.name or node.output[0]}): read inside a nested graph")
            reason = f"no rule for {key}" if rule is None else "the sizes of its result are known only at run time"
            self._unknown(node, reason)
            return
        tensors = [self._read(name) if name else None for name in node.input]
        call = OnnxCall(
            self.space,
            f"{node.op_type} ({node.output[0]})",
            [shape for shape in shapes if shape is not None],
            [tensor for tensor in tensors if tensor is not None],
            node=node,
            opset=self.opset.get(node.domain, self.opset.get("", 0)),
            options=options,
            tensors=tensors,
            known=numbers,
            quantised=self._quantised,
        )
        try:
            if any(tensor is None for tensor, name in zip(tensors, node.input, strict=True) if name):
                raise ValueError("an input has sizes that are known only at run time")
            found = rule(call)
            call.freeze_the_rest()
            results = (
                found if isinstance(found, list) else [found if isinstance(found, Value) else Value(found, (False,) * len(found))]
            )
            self._check(results, call.outputs)
        except (ValueError, IndexError, TypeError, KeyError, MismatchError) as error:
            # A gap in a rule costs prunability, never a crash.
            self._unknown(node, f"the rule for {key} does not cover this use ({type(error).__name__}: {error})")
            return
        if call.inputs_after or call.attributes_after:
            self.edits[number] = _Edits(call.inputs_after, call.attributes_after)
        for name, value in zip([name for name in node.output if name], results, strict=False):
            self.values[name] = value
        if node.op_type == "QuantizeLinear":
            source = self.values[node.input[0]]
            if source is not None and len(node.input) > 2:
                self._quantised[node.output[0]] = (node.input[2], source.zeros)

    @staticmethod
    def _check(results: Sequence[Value], shapes: Sequence[tuple[int, ...]]) -> None:
        for value, shape in zip(results, shapes, strict=False):
            sizes = tuple(dim.size for dim in value.dims)
            if sizes != tuple(shape):
                raise ValueError(f"it gave sizes {sizes} where the model has {shape}")
        if len(results) < len(shapes):
            raise ValueError(f"it gave {len(results)} results where the model has {len(shapes)}")

    def _read(self, name: str) -> Value | None:
        if name not in self.values and name in self.known:
            dims = tuple(self.space.leaf(size) for size in self.known[name].shape)
            for dim in dims:
                self.space.freeze(dim, "its numbers are part of the graph")
            self.values[name] = Value(dims, (False,) * len(dims))
        return self.values.get(name)

    def _unknown(self, node: onnx.NodeProto, reason: str) -> None:
        text = f"{node.op_type} ({node.output[0]}): {reason}"
        for name in node.input:
            if name:
                self._read(name)
                self._freeze(name, text)
        for name in node.output:
            if name:
                self.values[name] = self._fresh(name, text)

    def _infer(self, node: onnx.NodeProto) -> None:
        bounds = [self.known.get(name) for name in node.input]
        if node.op_type == "Range" and all(bound is not None for bound in bounds):
            # Shape inference writes the numbers out, and gives up on many.
            start, limit, step = (bound.item() for bound in bounds if bound is not None)
            count = max(0, ceil((limit - start) / step)) if isinstance(step, float) else max(0, -(-(limit - start) // step))
            kind = helper.np_dtype_to_tensor_dtype(bounds[0].dtype)  # type: ignore[union-attr]  # none is None
            self._types[node.output[0]] = helper.make_tensor_type_proto(kind, [count])
            return
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset.get(domain, self.opset.get("", 1)), domain)
        except onnx.defs.SchemaError:
            return self._infer_simply(node)
        kinds = {name: self._types[name] for name in node.input if name in self._types}
        data = {}
        for name in node.input:
            if name in self._small:
                data[name] = self._small[name]
            elif name in self.known:
                data[name] = numpy_helper.from_array(np.ascontiguousarray(self.known[name]), name)
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, node, kinds, data, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version
            )
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, TypeError, ValueError, KeyError):
            return self._infer_simply(node)
        self._types.update(found)
        if self.shape(node.output[0]) is None:
            self._infer_simply(node)

    def _infer_simply(self, node: onnx.NodeProto) -> None:
        """Operators without an inference of their own whose result has the shape of the first input."""
        if node.op_type in _SAME_SHAPE and node.input[0] in self._types:
            self._types[node.output[0]] = self._types[node.input[0]]


class _Rewrite:
    """The nodes after a cut: attributes and integer inputs replaced where what they hold is no longer right."""

    def __init__(self, walk: _Walk, kept: Kept) -> None:
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
            self._out.append(node if sizes else self._node(node, self.walk.edits.get(number, _Edits())))
        return self._out

    def _now(self, name: str) -> Array | None:
        """What a known tensor holds at run time after the cut."""
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
        if node.op_type in ("Shape", "Size") or any(one in self._actual for one in node.input):
            now = evaluate(node, attributes(node), [self._now(one) if one else None for one in node.input], self._shape)
            if now is None or not np.array_equal(now, self.walk.known[name]):
                self._actual[name] = now

    def _node(self, node: onnx.NodeProto, edits: _Edits) -> onnx.NodeProto:
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

    def _changed_inputs(self, node: onnx.NodeProto, edits: _Edits) -> dict[int, str]:
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
                changes[position] = self._constant(np.asarray(numbers(self.kept), dtype=np.int64))
        return changes

    def _name(self) -> str:
        self._made += 1
        return f"hwprune_size_{self._made}"

    def _constant(self, value: Array) -> str:
        name = self._name()
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
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
            return self._constant(wanted)
        producer = self.walk.producers.get(name)
        if producer is not None and producer.op_type == "Concat" and wanted.ndim == 1:
            sizes = [self.walk.known[part].size if part in self.walk.known else -1 for part in producer.input]
            if -1 not in sizes:
                pieces = np.split(wanted, np.cumsum(sizes)[:-1])
                names = [self._materialise(part, piece) for part, piece in zip(producer.input, pieces, strict=True)]
                return self._emit("Concat", names, axis=0)
        entries = [self._entry(int(entry)) for entry in wanted.reshape(-1)]
        joined = entries[0] if len(entries) == 1 else self._emit("Concat", entries, axis=0)
        if wanted.shape != (len(entries),):
            joined = self._emit("Reshape", [joined, self._constant(np.asarray(wanted.shape, dtype=np.int64))])
        if wanted.dtype != np.int64:
            joined = self._emit("Cast", [joined], to=helper.np_dtype_to_tensor_dtype(wanted.dtype))
        return joined

    def _entry(self, number: int) -> str:
        """One number as a tensor of shape (1,): a constant times the run-time sizes that its primes stand for."""
        rest, primes = factors(number, self.walk.symbols)
        name = None if rest == 1 and primes else self._constant(np.asarray([rest], dtype=np.int64))
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
                "Gather", [shape, self._constant(np.asarray([position], dtype=np.int64))], axis=0
            )
        return self._symbol_names[prime]
