"""An ONNX graph in pieces that can be timed alone: what the table of latencies is made of.

A segment is one heavy operator (its *anchor*: convolution, matrix product, normalisation, pooling, ...) with all the light
ones that follow it until the next anchor, because runtimes fuse them: convolution + batch norm + residual sum + ReLU is one
kernel. Each node belongs to exactly one segment, so a sum over segments counts the network once (nn-Meter, MobiSys 2021:
the unit is the fused kernel, not the layer).

A node joins the latest segment among its producers. Segments are numbered in topological order of their anchors, so the segments
of a node's inputs are never later than its own: every piece is convex, and can be cut out and run by itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from hwprune.latency import operator_versions

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

SMALL = 64
"""Constants of whole numbers with up to this many elements (shapes, axes, indices) are part of what an operator is."""


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
        """Digest of what decides its time: operators, attributes, wiring, shapes and types; not the weights' values.

        Stored tables are keyed by it, so what was added later counts only where it is unusual: operators of another version
        than the usual opset's, and the bodies of the model's own functions.
        """
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
        for text in operator_versions.unusual(self.nodes, self.functions, self.opsets):
            digest.update(text)
        return digest.hexdigest()[:20]

    def _argument(self, name: str, numbers: Mapping[str, str]) -> str:
        if name in numbers or not name:
            return numbers.get(name, "-")
        constant, tensor = self.constants[name], self.tensors[name]
        if has_values(constant):
            return f"={numpy_helper.to_array(constant).tobytes().hex()}:{tensor}"
        return f"w{tensor}"

    @cached_property
    def weights(self) -> tuple[Tensor, ...]:
        """Constants that are numbers, not structure, and are read whole: of a table that is looked up in, a few rows are."""
        tables = {node.input[0] for node in self.nodes if node.op_type in ("Gather", "GatherElements", "GatherND")}
        return tuple(self.tensors[n] for n, item in self.constants.items() if not has_values(item) and n not in tables)

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
            if has_values(item):
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
        arrays = []
        for name in self.inputs:
            tensor = self.tensors[name]
            kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.kind)
            arrays.append(_random(generator, tensor.shape, kind, 1.0))
        return arrays


def has_values(item: onnx.TensorProto) -> bool:
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
