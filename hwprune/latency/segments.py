"""An ONNX graph in pieces that can be timed alone: what the table of latencies is made of.

A segment is one heavy operator (its *anchor*: convolution, matrix product, normalisation, pooling, ...) with all the light
ones that follow it until the next anchor, because runtimes fuse them: convolution + batch norm + residual sum + ReLU is one
kernel. Each node belongs to exactly one segment, so a sum over segments counts the network once (nn-Meter, MobiSys 2021:
the unit is the fused kernel, not the layer).

A node joins the latest segment among its producers. Segments are numbered in topological order of their anchors, so the segments
of a node's inputs are never later than its own: every piece is convex, and can be cut out and run by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from hwprune.errors import UsageError

ANCHORS = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "QLinearConv",
        "DeformConv",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "QLinearMatMul",
        "MatMulNBits",
        "Einsum",
        "LSTM",
        "GRU",
        "RNN",
        "Attention",
        "MultiHeadAttention",
        "GroupQueryAttention",
        "Softmax",
        "LogSoftmax",
        "LayerNormalization",
        "RMSNormalization",
        "GroupNormalization",
        "InstanceNormalization",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "ReduceMean",
        "Resize",
        "Gather",
        "GatherElements",
        "TopK",
    ]
)
"""Operators that start a segment."""

_SMALL = 64
"""Constants of whole numbers with up to this many elements (shapes, axes, indices) are part of what an operator is."""
_STRUCTURAL = {
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Pad": (1, 2, 3),
    "Clip": (1, 2),
    "Range": (0, 1, 2),
    "TopK": (1,),
    "Tile": (1,),
}
"""Inputs of any type whose values decide shapes or which kernel runs."""
_FOLDABLE = frozenset("Cast Identity Unsqueeze Squeeze Concat Gather Slice Reshape Transpose Add Sub Mul Div Shape Range".split())  # noqa: SIM905
"""Cheap operators that are computed away where all their inputs are small constants."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's shape and ONNX element type."""

    shape: tuple[int, ...]
    kind: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * _item_size(self.kind)


def _item_size(kind: int) -> int:
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize)


@dataclass(frozen=True)
class Segment:
    """A piece of a graph.

    Attributes:
        name: the anchor node's name in the graph, else that of its first node.
        anchor: the heavy operator's type, or ``light`` for what comes before the first anchor.
        nodes: in topological order.
        inputs, outputs: tensors that enter and leave, in order of first use.
        constants: initializers that it reads.
        tensors: shapes of all of them.
    """

    name: str
    anchor: str
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, onnx.TensorProto]
    tensors: Mapping[str, Tensor]
    opsets: tuple[tuple[str, int], ...]
    functions: tuple[onnx.FunctionProto, ...] = ()

    @cached_property
    def signature(self) -> str:
        """Digest of what decides its time: operators, attributes, wiring, shapes and types; not the weights' values."""
        digest = hashlib.sha256()
        numbers = {name: str(position) for position, name in enumerate(self.inputs)}
        for name in self.inputs:
            digest.update(f"in {self.tensors[name]};".encode())
        for node in self.nodes:
            digest.update(f"{node.domain} {node.op_type}".encode())
            for attribute in sorted(node.attribute, key=lambda a: a.name):
                digest.update(attribute.SerializeToString(deterministic=True))
            for name in node.input:
                digest.update(f" {self._argument(name, numbers)}".encode())
            for name in node.output:
                numbers[name] = str(len(numbers))
        digest.update(" ".join(numbers[name] for name in self.outputs).encode())
        return digest.hexdigest()[:20]

    def _argument(self, name: str, numbers: Mapping[str, str]) -> str:
        if name in numbers or not name:
            return numbers.get(name, "-")
        constant, tensor = self.constants[name], self.tensors[name]
        if _has_values(constant):
            return f"={numpy_helper.to_array(constant).tobytes().hex()}:{tensor}"
        return f"w{tensor}"

    @cached_property
    def weights(self) -> tuple[Tensor, ...]:
        """Constants that are numbers, not structure, and are read whole: of a table that is looked up in, a few rows are."""
        tables = {node.input[0] for node in self.nodes if node.op_type in ("Gather", "GatherElements", "GatherND")}
        return tuple(self.tensors[n] for n, item in self.constants.items() if not _has_values(item) and n not in tables)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of its convolutions and matrix products."""
        return sum(self._macs(node) for node in self.nodes)

    @cached_property
    def nbytes(self) -> int:
        """Bytes that must be read and written once."""
        moved = sum(self.tensors[name].nbytes for name in (*self.inputs, *self.outputs))
        return moved + sum(tensor.nbytes for tensor in self.weights)

    def _macs(self, node: onnx.NodeProto) -> int:
        out = self.tensors.get(node.output[0])
        if out is None:
            return 0
        shapes = [self.tensors[name].shape for name in node.input if name in self.tensors]
        if node.op_type in ("Conv", "QLinearConv", "ConvInteger"):
            weight = next((s for s in shapes[1:] if len(s) == len(shapes[0])), None)
            return out.elements * math.prod(weight[1:]) if weight else 0
        if node.op_type == "ConvTranspose":
            return math.prod(shapes[0]) * math.prod(shapes[1][1:])
        if node.op_type in ("MatMul", "QLinearMatMul", "MatMulInteger"):
            return out.elements * shapes[0][-1] if shapes[0] else 0
        if node.op_type == "Gemm":
            inner = shapes[0][0] if _integer(node, "transA") else shapes[0][-1]
            return out.elements * inner
        if node.op_type in ("LSTM", "GRU", "RNN"):
            return shapes[0][0] * shapes[0][1] * (math.prod(shapes[1]) + math.prod(shapes[2]))
        return 0

    @cached_property
    def gemm(self) -> tuple[int, int, int, int]:
        """(batches, M, N, K) of the anchor as a matrix product, for tiles and features; zeros if it is none.

        A convolution is M = output positions, N = output channels, K = weights of an output channel, one per group.
        """
        node = next((n for n in self.nodes if n.op_type == self.anchor), None)
        if node is None or not self._macs(node):
            return (0, 0, 0, 0)
        out, first = self.tensors[node.output[0]].shape, self.tensors[node.input[0]].shape
        if node.op_type in ("Conv", "QLinearConv", "ConvInteger"):
            groups = max(1, _integer(node, "group", 1))
            positions, channels = out[0] * math.prod(out[2:]), out[1]
            inner = self._macs(node) // max(1, positions * channels)
            return (groups, positions, channels // groups, inner)
        if node.op_type == "Gemm":
            return (1, out[0], out[1], self._macs(node) // max(1, out[0] * out[1]))
        if node.op_type in ("MatMul", "QLinearMatMul", "MatMulInteger") and len(out) >= 2:
            weighted = node.input[1] in self.constants and len(self.tensors[node.input[1]].shape) <= 2
            batches = 1 if weighted else math.prod(out[:-2])
            rows = math.prod(out[:-1]) if weighted else out[-2]
            return (batches, rows, out[-1], first[-1])
        return (1, out[0] if out else 1, 1, self._macs(node) // max(1, out[0] if out else 1))

    @cached_property
    def family(self) -> str:
        """What it is, whatever its widths: the group that the predictor corrects as one."""
        node = next((n for n in self.nodes if n.op_type == self.anchor), self.nodes[0])
        out = self.tensors.get(node.output[0])
        parts = [self.anchor]
        if node.op_type in ("Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "MaxPool", "AveragePool") and out is not None:
            weight = self.tensors[node.input[1]].shape if len(node.input) > 1 and node.input[1] in self.tensors else ()
            kernel = weight[2:] or _integers(node, "kernel_shape")
            depthwise = _integer(node, "group", 1) > 1
            strides = _integers(node, "strides") or (1,)
            parts += ["x".join(map(str, kernel)), f"/{strides[0]}", "@" + "x".join(map(str, out.shape[2:]))]
            parts += ["grouped"] * depthwise
        elif node.op_type in ("MatMul", "Gemm"):
            parts.append("weights" if node.input[1] in self.constants else "two inputs")
        return " ".join(parts)

    def features(self) -> dict[str, float]:
        """What the regressor of unmeasured segments reads; all sizes, no times."""
        batches, rows, columns, inner = self.gemm
        kinds = [node.op_type for node in self.nodes]
        return {
            "macs": self.macs,
            "bytes": self.nbytes,
            "weights": sum(t.elements for t in self.weights),
            "in": sum(self.tensors[name].elements for name in self.inputs),
            "out": sum(self.tensors[name].elements for name in self.outputs),
            "batches": batches,
            "rows": rows,
            "columns": columns,
            "inner": inner,
            "columns_mod_16": columns % 16,
            "columns_mod_8": columns % 8,
            "inner_mod_16": inner % 16,
            "nodes": len(kinds),
            "sums": kinds.count("Add"),
            "activations": sum(kind in ("Relu", "Gelu", "Sigmoid", "Tanh", "Erf", "HardSwish", "Clip") for kind in kinds),
            "moves": sum(kind in ("Transpose", "Reshape", "Slice", "Concat", "Split", "Pad") for kind in kinds),
        }

    def model(self, seed: int = 0) -> onnx.ModelProto:
        """It alone, with random weights; files need not travel with the trained ones."""
        generator = np.random.default_rng(seed)
        stored = []
        for name, item in self.constants.items():
            if _has_values(item):
                stored.append(item)
                continue
            kind = onnx.helper.tensor_dtype_to_np_dtype(item.data_type)
            fan = max(1, math.prod(item.dims[1:]) if len(item.dims) > 1 else 1)
            values = _random(generator, tuple(item.dims), kind, 1 / math.sqrt(fan))
            stored.append(numpy_helper.from_array(values, name))
        graph = onnx.helper.make_graph(
            list(self.nodes),
            "segment",
            [_value(name, self.tensors[name]) for name in self.inputs],
            [_value(name, self.tensors[name]) for name in self.outputs],
            stored,
        )
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in self.opsets]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=list(self.functions))

    def samples(self, seed: int = 0) -> list[np.ndarray[Any, Any]]:
        """Inputs for `model`: normal numbers; whole numbers are 0 or 1, which every table of embeddings has."""
        generator = np.random.default_rng(seed)
        made = []
        for name in self.inputs:
            tensor = self.tensors[name]
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.kind)
            made.append(_random(generator, tensor.shape, kind, 1.0))
        return made


def split(model: onnx.ModelProto, shapes: Sequence[Sequence[int]] | None = None) -> list[Segment]:
    """The segments of a model, in topological order.

    Args:
        shapes: of the model's inputs; default: as declared, free dimensions are 1.

    Raises:
        UsageError: shapes don't fit, or a tensor's shape can't be inferred.
    """
    fixed, constants = with_shapes(model, shapes)
    graph = fixed.graph
    tensors = _tensors(fixed)
    nodes = list(graph.node)
    where = _assign(nodes)
    groups: dict[int, list[onnx.NodeProto]] = {}
    for position, node in enumerate(nodes):
        groups.setdefault(where[position], []).append(node)
    opsets = tuple((item.domain, item.version) for item in fixed.opset_import)
    final = {item.name for item in graph.output}
    readers: dict[str, set[int]] = {}
    for position, node in enumerate(nodes):
        for name in _reads(node):
            readers.setdefault(name, set()).add(where[position])
    found = []
    for number in sorted(groups):
        members = groups[number]
        made = {name for node in members for name in node.output if name}
        read = list(dict.fromkeys(name for node in members for name in _reads(node)))
        inputs = [name for name in read if name not in made and name not in constants]
        outputs = [n for node in members for n in node.output if n and (n in final or readers.get(n, set()) - {number})]
        unknown = [name for name in (*inputs, *outputs) if name not in tensors]
        if unknown:
            raise UsageError(
                f"the shape of {unknown[0]} ({members[0].op_type}) can't be inferred; is the model's graph complete?"
            )
        anchor = next((n for n in members if n.op_type in ANCHORS), None)
        used = {name: constants[name] for name in read if name in constants}
        mine = {name: tensors[name] for name in (*read, *made) if name in tensors}
        found.append(
            Segment(
                (anchor or members[0]).name or (anchor or members[0]).output[0],
                anchor.op_type if anchor is not None else "light",
                tuple(members),
                tuple(inputs),
                tuple(outputs),
                used,
                mine,
                opsets,
                tuple(fixed.functions),
            )
        )
    return found


def with_shapes(
    model: onnx.ModelProto, shapes: Sequence[Sequence[int]] | None = None
) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """A copy with fixed input shapes and every shape inferred, and its constants. Raises `UsageError`.

    What only computes shapes is folded. Weights are inputs of the copy and headers without data among the constants: nothing here
    reads them, and copying them is what takes time.
    """
    fixed = onnx.ModelProto(ir_version=model.ir_version)
    fixed.opset_import.extend(model.opset_import)
    fixed.functions.extend(model.functions)
    fixed.graph.name = model.graph.name
    fixed.graph.output.extend(model.graph.output)
    stored = {item.name: item for item in model.graph.initializer}
    nodes = _folded_constants(model, stored)
    forced = _structural_names(nodes)
    fixed.graph.node.extend(nodes)
    fixed.graph.initializer.extend(item for item in stored.values() if item.name in forced or _is_structural(item))
    kept = {item.name for item in fixed.graph.initializer}
    weights = [_header(item) for item in stored.values() if item.name not in kept]
    known = {item.name for item in model.graph.initializer}
    fixed.graph.input.extend(item for item in model.graph.input if item.name not in known)
    inputs = list(fixed.graph.input)
    if shapes is not None and len(shapes) < len(inputs):
        raise UsageError(f"the model takes {len(inputs)} inputs, {len(shapes)} shapes were given")
    for position, item in enumerate(inputs):
        dims = item.type.tensor_type.shape.dim
        given = shapes[position] if shapes is not None else [d.dim_value or 1 for d in dims]
        if len(given) != len(dims) or any(d.dim_value and d.dim_value != g for d, g in zip(dims, given, strict=False)):
            wanted = [d.dim_value or d.dim_param or "?" for d in dims]
            raise UsageError(f"input {item.name} has shape {wanted}, got {list(given)}")
        for dim, size in zip(dims, given, strict=True):
            dim.dim_value = int(size)
    fixed.graph.input.extend(onnx.helper.make_tensor_value_info(i.name, i.data_type, list(i.dims)) for i in weights)
    for item in fixed.graph.output:
        item.type.tensor_type.ClearField("shape")
    if any(node.op_type in ("Shape", "Size", "ConstantOfShape", "Range", "NonZero") for node in fixed.graph.node):
        fixed = _folded(fixed)
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
        return inferred, {item.name: item for item in (*inferred.graph.initializer, *weights)}
    except onnx.shape_inference.InferenceError as error:
        raise UsageError(f"the shapes of the model don't fit: {str(error).strip().splitlines()[0]}") from error


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Shape arithmetic computed away, now that shapes are known."""
    from onnxscript import optimizer

    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it can't fold it says, and leaves as it is
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result: onnx.ModelProto = optimizer.optimize(onnx.shape_inference.infer_shapes(model, data_prop=True))
    finally:
        logger.setLevel(level)
    del result.graph.value_info[:]
    return result


def _header(item: onnx.TensorProto) -> onnx.TensorProto:
    return onnx.TensorProto(name=item.name, data_type=item.data_type, dims=item.dims)


def _assign(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """The segment number of each node."""
    owner: dict[str, int] = {}
    where = []
    latest = 0
    for node in nodes:
        if node.op_type in ANCHORS:
            latest += 1
            number = latest
        else:
            number = max((owner[name] for name in _reads(node) if name in owner), default=0)
        where.append(number)
        for name in node.output:
            owner[name] = number
    return where


def _folded_constants(model: onnx.ModelProto, stored: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """The nodes without those that only make constants; what they make goes to ``stored``."""
    from onnx.reference import ReferenceEvaluator

    opsets = {item.domain: item.version for item in model.opset_import}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Constant" and not node.domain:
            if (item := _constant(node)) is not None:
                stored[item.name] = item
                continue
        elif node.op_type in _FOLDABLE and not node.domain and node.input:
            given = [stored.get(name) for name in node.input if name]
            if all(item is not None and _has_values(item) and math.prod(item.dims) <= _SMALL for item in given):
                values = [numpy_helper.to_array(item) for item in given if item is not None]
                try:
                    made = ReferenceEvaluator(node, opsets=opsets).run(
                        None, dict(zip([name for name in node.input if name], values, strict=True))
                    )
                except Exception:  # an operator or type that the reference doesn't know stays a node
                    nodes.append(node)
                    continue
                for name, value in zip(node.output, made, strict=True):
                    stored[name] = numpy_helper.from_array(np.asarray(value), name)
                continue
        nodes.append(node)
    return nodes


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node in any of its forms; None for those of strings and sparse tensors."""
    for attribute in node.attribute:
        value: Any = onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            item = onnx.TensorProto()
            item.CopyFrom(value)
            item.name = node.output[0]
            return item
        kinds = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
        if attribute.name in kinds:
            return numpy_helper.from_array(np.array(value, kinds[attribute.name]), node.output[0])
    return None


def _structural_names(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """Constants whose values decide shapes or kernels although they are floats."""
    return {
        node.input[slot]
        for node in nodes
        for slot in _STRUCTURAL.get(node.op_type, ())
        if slot < len(node.input) and node.input[slot]
    }


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that a node reads, those of its inner graphs too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            made = {name for inner in graph.node for name in inner.output} | {i.name for i in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                yield from (name for name in _reads(inner) if name not in made)


def _tensors(model: onnx.ModelProto) -> dict[str, Tensor]:
    found = {item.name: Tensor(tuple(item.dims), item.data_type) for item in model.graph.initializer}
    for item in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = item.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            found[item.name] = Tensor(tuple(d.dim_value for d in kind.shape.dim), kind.elem_type)
    return found


def _is_structural(item: onnx.TensorProto) -> bool:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    return math.prod(item.dims) <= _SMALL and (item.data_type not in floats or not item.dims)


def _has_values(item: onnx.TensorProto) -> bool:
    """Is it more than a header? Weights travel without their data."""
    fields = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    return not math.prod(item.dims) or any(len(getattr(item, name)) for name in fields)


def _random(generator: np.random.Generator, shape: tuple[int, ...], kind: Any, scale: float) -> np.ndarray[Any, Any]:
    """Normal floats (zeros and denormals run at other speeds), bits for whole numbers."""
    kind = np.dtype(kind)
    if kind.kind in "iub":
        return generator.integers(0, 2, shape).astype(kind)
    return (generator.standard_normal(shape) * scale).astype(kind)


def _value(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, tensor.kind, list(tensor.shape))


def _integer(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _integers(node: onnx.NodeProto, name: str) -> tuple[int, ...]:
    return next((tuple(a.ints) for a in node.attribute if a.name == name), ())
