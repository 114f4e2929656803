"""One pass over an ONNX graph: the dims of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwprune.errors import UsageError
from hwprune.structure.borders import Crossing
from hwprune.structure.dims import Dim, MismatchError, Space
from hwprune.structure.onnx.flatten import FLOATS, captured, only_scaled, whole_inference
from hwprune.structure.onnx.rules import RULES, OnnxCall
from hwprune.structure.onnx.rules.table import Numbers
from hwprune.structure.onnx.values import LIMIT, Array, attributes, cut_table, evaluate, is_small, range_type
from hwprune.structure.scope import Kept, Value
from hwprune.structure.symbols import PRIMES

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


@dataclass(slots=True)
class Edits:
    inputs: dict[int, Numbers] = field(default_factory=dict)
    attributes: dict[str, Callable[[Kept], Any]] = field(default_factory=dict)


class Walk:
    """One pass in graph order: the dims of every tensor, and the numbers of the shape computations."""

    def __init__(
        self,
        model: onnx.ModelProto,
        sizes: Mapping[str, Sequence[int]],
        learned: Mapping[str, Sequence[int]] | None = None,
        crossings: Mapping[str, Crossing] | None = None,
    ) -> None:
        self.model = model
        self._crossings = crossings or {}
        self.token_dims: dict[tuple[str, str], Dim] = {}
        """(main tensor of a border, form) -> the tokens behind it."""
        self._sizes = sizes
        self._learned = learned or {}
        self.space = Space()
        self.values: dict[str, Value | None] = {}
        self.stored: dict[str, Value] = {}
        self.known: dict[str, Array] = {}
        self.edits: dict[int, Edits] = {}
        self.computes_sizes: set[int] = set()
        self.producers: dict[str, onnx.NodeProto] = {}
        self.symbols: dict[int, tuple[str, int]] = {}
        """Prime -> the graph input and dim whose run-time size it stands for."""
        self.opset = {item.domain: item.version for item in model.opset_import}
        self.types: dict[str, onnx.TypeProto] = {}
        """Tensor -> its type and sizes, as far as they are known."""
        self._small: dict[str, TensorProto] = {}
        self._quantised: dict[str, tuple[str, tuple[bool, ...]]] = {}
        self._names: dict[str, int] = {}
        self._inferred: dict[str, onnx.TypeProto] | None = None
        self._scaled: set[str] = set()

    def run(self) -> None:
        self._scaled = only_scaled(self.model.graph)
        for item in self.model.graph.input:
            self._enter_input(item)
        for tensor in self.model.graph.initializer:
            self._enter_initializer(tensor)
        for number, node in enumerate(self.model.graph.node):
            for name in node.output:
                self.producers[name] = node
            self._visit(number, node)
        for output in self.model.graph.output:
            self._freeze(output.name, "model output")

    def shape(self, name: str) -> tuple[int, ...] | None:
        kind = self.types.get(name)
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return None
        sizes = []
        for dim in kind.tensor_type.shape.dim:
            if not dim.HasField("dim_value") or dim.dim_value < 0:  # below 0: the input is too small for a kernel
                return None
            sizes.append(dim.dim_value)
        return tuple(sizes)

    def _enter_input(self, item: onnx.ValueInfoProto) -> None:
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
        self.types[item.name] = kind
        self.values[item.name] = self._fresh(item.name, "model input")

    def _enter_initializer(self, tensor: TensorProto) -> None:
        self.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        if int(np.prod(tensor.dims)) <= LIMIT:
            self._small[tensor.name] = tensor
            array = numpy_helper.to_array(tensor)
            if is_small(array):
                self.known[tensor.name] = array
        whole = tensor.data_type not in FLOATS
        numbers = tensor.name in self.known and whole and tensor.name not in self._scaled
        value = self._fresh(
            tensor.name, "its numbers are part of the graph" if numbers else None, zero=True, parameter=tensor.name
        )
        assert value is not None
        self.values[tensor.name] = self.stored[tensor.name] = value

    def _fresh(self, name: str, reason: str | None, *, zero: bool = False, parameter: str | None = None) -> Value | None:
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

    def _visit(self, number: int, node: onnx.NodeProto) -> None:
        if node.output and (crossing := self._crossings.get(node.output[0])) is not None:
            value = self.values.get(node.input[0])
            self.types[node.output[0]] = self.types[node.input[0]]
            self.values[node.output[0]] = None if value is None else crossing.behind(value, self.token_dims, self.space)
            return
        options = attributes(node)
        numbers = [self.known.get(name) if name else None for name in node.input]
        self._infer(node)
        result = evaluate(node, options, numbers, self.shape)
        if result is not None:
            self.known[node.output[0]] = result
            if result.size == 1 or result.dtype.kind in "iub":
                self.types.setdefault(
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
            self._give_up(node, reason)
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
            outputs = rule(call)
            call.freeze_the_rest()
            results = (
                outputs
                if isinstance(outputs, list)
                else [outputs if isinstance(outputs, Value) else Value(outputs, (False,) * len(outputs))]
            )
            _check(results, call.outputs)
        except (ValueError, IndexError, TypeError, KeyError, MismatchError) as error:
            # A gap in a rule costs prunability, never a crash.
            self._give_up(node, f"the rule for {key} does not cover this use ({type(error).__name__}: {error})")
            return
        if call.inputs_after or call.attributes_after:
            self.edits[number] = Edits(call.inputs_after, call.attributes_after)
        for name, value in zip([name for name in node.output if name], results, strict=False):
            self.values[name] = value
        if node.op_type == "QuantizeLinear":
            source = self.values[node.input[0]]
            if source is not None and len(node.input) > 2:
                self._quantised[node.output[0]] = (node.input[2], source.zeros)

    def _read(self, name: str) -> Value | None:
        if name not in self.values and name in self.known:
            dims = tuple(self.space.leaf(size) for size in self.known[name].shape)
            for dim in dims:
                self.space.freeze(dim, "its numbers are part of the graph")
            self.values[name] = Value(dims, (False,) * len(dims))
        return self.values.get(name)

    def _give_up(self, node: onnx.NodeProto, reason: str) -> None:
        text = f"{node.op_type} ({node.output[0]}): {reason}"
        for name in node.input:
            if name:
                self._read(name)
                self._freeze(name, text)
        for name in node.output:
            if name:
                self.values[name] = self._fresh(name, text)

    def _infer(self, node: onnx.NodeProto) -> None:
        """Types of the node's results: by its operator, by the whole model with nested graphs, by what runs have shown."""
        self._infer_alone(node)
        for name in node.output:
            inferred = self._whole_inference().get(name) if captured(node) else None
            if inferred is not None:
                self.types[name] = inferred
            if name in self._learned and self.shape(name) is None:
                elem_type = self.types[name].tensor_type.elem_type if name in self.types else TensorProto.FLOAT
                self.types[name] = helper.make_tensor_type_proto(elem_type, list(self._learned[name]))

    def _infer_alone(self, node: onnx.NodeProto) -> None:
        bounds = [self.known.get(name) for name in node.input]
        found = None
        if node.op_type == "Range":
            found = range_type(bounds)
        elif node.op_type == "Slice":
            found = cut_table(self.types.get(node.input[0]), bounds[1:])
        if found is not None:
            self.types[node.output[0]] = found
            return
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset.get(domain, self.opset.get("", 1)), domain)
        except onnx.defs.SchemaError:
            return self._infer_simply(node)
        kinds = {name: self.types[name] for name in node.input if name in self.types}
        data = {}
        for name in node.input:
            if name in self._small:
                data[name] = self._small[name]
            elif name in self.known:
                data[name] = numpy_helper.from_array(np.asarray(self.known[name], order="C"), name)
        try:
            types = onnx.shape_inference.infer_node_outputs(
                schema, node, kinds, data, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version
            )
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, TypeError, ValueError, KeyError):
            return self._infer_simply(node)
        self.types.update(types)
        if self.shape(node.output[0]) is None:
            self._infer_simply(node)

    def _whole_inference(self) -> dict[str, onnx.TypeProto]:
        """What inference over the whole model finds: it looks into nested graphs. Free sizes become their primes."""
        if self._inferred is None:
            self._inferred = whole_inference(self.model, self._names)
        return self._inferred

    def _infer_simply(self, node: onnx.NodeProto) -> None:
        """Operators without an inference of their own whose result has the shape of the first input."""
        if node.op_type in _SAME_SHAPE and node.input[0] in self.types:
            self.types[node.output[0]] = self.types[node.input[0]]


def _check(results: Sequence[Value], shapes: Sequence[tuple[int, ...]]) -> None:
    for value, shape in zip(results, shapes, strict=False):
        sizes = tuple(dim.size for dim in value.dims)
        if sizes != tuple(shape):
            raise ValueError(f"it gave sizes {sizes} where the model has {shape}")
    if len(results) < len(shapes):
        raise ValueError(f"it gave {len(results)} results where the model has {len(shapes)}")
