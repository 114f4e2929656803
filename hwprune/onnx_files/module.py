"""`OnnxModule`: computes an ONNX graph node by node, its initializers as parameters under their own names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from hwprune.errors import WorkloadError
from hwprune.onnx_files import as_it_is, qdq
from hwprune.onnx_files.operators import OPERATORS, Node
from hwprune.structure.onnx.graph import OnnxGraph
from hwprune.structure.onnx.values import attributes
from hwprune.structure.symbols import PRIMES, factors
from hwprune.structure.torch.rebuilding import assign

_QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def read_onnx(path: Path) -> onnx.ModelProto:
    """An ONNX file with its external data. Raises `WorkloadError`."""
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf and onnx raise their own types for a broken file
        raise WorkloadError(f"{path} can't be read as an ONNX model: {error}") from error
    if not model.graph.node:
        raise WorkloadError(f"{path} holds no graph")
    return model


class OnnxModule(nn.Module):
    """An ONNX graph as a trainable module.

    Initializers of floating type are parameters, named as in the file; running statistics of batch norm, integers and
    single numbers are buffers. Shape computations are not computed: their results are known from the analysis, up to the sizes of
    the inputs.

    Attributes:
        onnx_graph: the analysed file; candidates' files are cut from it.
        onnx_model: its model, flat (functions inlined).
        onnx_inputs: names of the graph's inputs, in order.

    Raises:
        WorkloadError: operators that can neither be computed nor kept as they are; every one is named, with how often it occurs.
    """

    def __init__(self, graph: OnnxGraph) -> None:
        super().__init__()
        self.onnx_graph = graph
        self.onnx_model = graph.model
        self._onnx_walk = graph.walk
        self.onnx_inputs = [item.name for item in self.onnx_model.graph.input]
        self._onnx_opset = self._onnx_walk.opset.get("", 1)
        self._onnx_names: dict[str, str] = {}
        self._onnx_scales: dict[str, list[float]] = {}  # short vectors that may be an argument (Resize)
        self._onnx_nodes = [
            (node, attributes(node))
            for number, node in enumerate(self.onnx_model.graph.node)
            if number not in self._onnx_walk.computes_sizes
        ]
        self._kept: dict[int, tuple[str, as_it_is.Kept]] = {}
        self._pairs = qdq.pairs([node for node, _ in self._onnx_nodes])
        self._refuse()
        self._store()

    def _refuse(self) -> None:
        """Raise for what can neither be computed nor kept as it is."""
        missing = Counter(
            f"{node.domain + '::' if node.domain else ''}{node.op_type}"
            for node, _ in self._onnx_nodes
            if node.domain not in as_it_is.DOMAINS or node.op_type in as_it_is.QUANTISED
        )
        if not missing:
            return
        text = ", ".join(f"{name} ({count} times)" if count > 1 else name for name, count in sorted(missing.items()))
        if any(name.rpartition("::")[2] in as_it_is.QUANTISED for name in missing):
            raise WorkloadError(
                f"the ONNX model is quantised in a form of which nothing can be cut: {text}. Bring the model in floating point "
                "(hwprune quantises what it prunes: --quantize int8), or in QDQ form (QuantizeLinear and DequantizeLinear)"
            )
        raise WorkloadError(
            f"the ONNX model uses operators that hwprune can't compute: {text}. "
            "Export it without a runtime's own fused operators, or bring the PyTorch model"
        )

    @property
    def quantised(self) -> bool:
        """Does the file compute in whole numbers (QDQ form)?"""
        return bool(self._pairs)

    @property
    def kept_nodes(self) -> list[str]:
        """Operators that are left to the runtime as they stand, in the order in which they were first computed."""
        return [self._onnx_nodes[place][0].op_type for place in self._kept]

    def learned_sizes(self) -> dict[str, tuple[int, ...]]:
        """Sizes of the results of kept nodes that the file does not tell, as runs have shown them."""
        found = {}
        for place, (_, kept) in self._kept.items():
            results = [name for name in self._onnx_nodes[place][0].output if name]
            for number, name in enumerate(results):
                told, sizes = kept.told[number], as_it_is.learned(kept, number)
                if (told is None or None in told) and sizes is not None:
                    found[name] = tuple(size or 0 for size in sizes)
        return found

    @property
    def onnx_initializers(self) -> dict[str, str]:
        """Parameter or buffer name -> initializer name."""
        return {name: stored for stored, name in self._onnx_names.items()}

    def _store(self) -> None:
        """Register the initializers that some node reads as data."""
        statistics = {name for node, _ in self._onnx_nodes if node.op_type == "BatchNormalization" for name in node.input[3:5]}
        statistics |= {name for node, _ in self._onnx_nodes if node.op_type in _QUANTISERS for name in node.input[1:]}
        taken: set[str] = set()
        ways: set[str] = set()
        reserved = frozenset(dir(self))
        for tensor in self.onnx_model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype.kind not in "fiub":
                raise WorkloadError(f"initializer {tensor.name} has type {array.dtype}, which PyTorch does not have")
            value = torch.from_numpy(np.array(array))
            if array.dtype.kind == "f" and array.ndim == 1 and array.size <= 8:
                self._onnx_scales[tensor.name] = array.tolist()
            name = _legal(tensor.name, taken, ways, reserved)
            taken.add(name)
            ways |= _ways(name)
            self._onnx_names[tensor.name] = name
            learned = tensor.data_type in _FLOATS and value.numel() > 1 and tensor.name not in statistics
            assign(self, name, nn.Parameter(value) if learned else value)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The graph's outputs, one tensor or a tuple."""
        if len(inputs) != len(self.onnx_inputs):
            raise ValueError(
                f"the ONNX model takes {len(self.onnx_inputs)} inputs ({', '.join(self.onnx_inputs)}), got {len(inputs)}"
            )
        values: dict[str, torch.Tensor] = dict(zip(self.onnx_inputs, inputs, strict=True))
        sizes = {prime: values[source].shape[dim] for prime, (source, dim) in self._onnx_walk.symbols.items()}
        for place, (node, options) in enumerate(self._onnx_nodes):
            result = self._compute(place, node, options, values, sizes)
            results = result if isinstance(result, tuple) else (result,)
            values.update((name, tensor) for name, tensor in zip(node.output, results, strict=False) if name)
        outputs = tuple(self._tensor(item.name, values, sizes) for item in self.onnx_model.graph.output)
        return outputs[0] if len(outputs) == 1 else outputs

    def _compute(
        self,
        place: int,
        node: onnx.NodeProto,
        options: Mapping[str, Any],
        values: dict[str, torch.Tensor],
        sizes: Mapping[int, Any],
    ) -> Any:
        """The node's results: by PyTorch where there is a function that has its form, else by the runtime as it stands."""
        before = self._pairs.get(node.output[0])
        if before is not None:
            return self._quantised(before, values, sizes)
        function = OPERATORS.get(node.op_type) if place not in self._kept and node.domain != "ai.onnx.ml" else None
        if function is not None:
            try:
                return function(self._node(node, options, values, sizes))
            except ValueError:
                pass
        if place not in self._kept:
            self._kept[place] = as_it_is.keep(node, self.onnx_model, self._onnx_walk.types)
        key, kept = self._kept[place]
        results = iter(as_it_is.compute(key, [self._whole(name, values, sizes) for name in kept.names]))
        return tuple(next(results) if name else None for name in node.output)

    def _quantised(self, node: onnx.NodeProto, values: Mapping[str, torch.Tensor], sizes: Mapping[int, Any]) -> torch.Tensor:
        """What a QuantizeLinear and the DequantizeLinear after it make of a tensor."""
        x, scale, point = (self._whole(name, values, sizes) for name in node.input)
        limits = torch.iinfo(point.dtype)
        result: torch.Tensor = torch.ops.hwprune.fake_quantize(
            x, scale, point, limits.min, limits.max, attributes(node).get("axis", 1)
        )
        return result

    def _whole(self, name: str, values: Mapping[str, torch.Tensor], sizes: Mapping[int, Any]) -> torch.Tensor:
        """A tensor of the graph, also one of sizes that are known at run time only."""
        found = self._tensor(name, values, sizes)
        if found is not None:
            return found
        shape = self._onnx_walk.known[name].shape
        return torch.tensor(self._numbers(name, sizes)).reshape(shape)

    def _node(
        self, node: onnx.NodeProto, options: Mapping[str, Any], values: dict[str, torch.Tensor], sizes: Mapping[int, Any]
    ) -> Node:
        numbers = [self._numbers(name, sizes) if name else None for name in node.input]
        tensors = [self._tensor(name, values, sizes) if name else None for name in node.input]
        used = sum(1 for name in node.output if name)
        return Node(node.op_type, options, self._onnx_opset, tensors, numbers, used, self.training)

    def _numbers(self, name: str, sizes: Mapping[int, Any]) -> list[Any] | None:
        array = self._onnx_walk.known.get(name)
        if array is None:
            return self._onnx_scales.get(name)
        if array.dtype.kind not in "iu":
            return [entry.item() for entry in array.reshape(-1)]
        return [_size(int(entry), sizes) for entry in array.reshape(-1)]

    def _tensor(self, name: str, values: Mapping[str, torch.Tensor], sizes: Mapping[int, Any]) -> torch.Tensor | None:
        if name in values:
            return values[name]
        if name in self._onnx_names:
            value: Any = self
            for part in self._onnx_names[name].split("."):
                value = getattr(value, part)
            assert isinstance(value, torch.Tensor)
            return value
        array = self._onnx_walk.known.get(name)
        if array is None:
            return None
        entries = self._numbers(name, sizes)
        if entries is not None and any(not isinstance(entry, (int, float, bool)) for entry in entries):
            return None  # a run-time size: read as numbers only
        return torch.from_numpy(np.array(array))


def _legal(name: str, taken: set[str], ways: set[str], reserved: frozenset[str]) -> str:
    """A name of its own under which a module can hold the tensor.

    No part is empty or called like something that modules have, and no part of the way is a tensor.

    Args:
        taken: names so far.
        ways: names of the modules that these lie in.
        reserved: what the module has besides.
    """
    parts = [part or "_" for part in name.split(".")]
    parts = [f"{part}_" if part in reserved else part for part in parts]
    found = ".".join(parts)
    if _clashes(found, taken, ways):
        found = "_".join(parts)
    while _clashes(found, taken, ways) or found in reserved:
        found += "_"
    return found


def _clashes(name: str, taken: set[str], ways: set[str]) -> bool:
    """Is it a tensor's name already, or the way to one, or would a tensor lie on its way?"""
    return name in taken or name in ways or bool(_ways(name) & taken)


def _ways(name: str) -> set[str]:
    """Names of the modules that a tensor lies in."""
    return {name[:place] for place, letter in enumerate(name) if letter == "."}


def _size(number: int, sizes: Mapping[int, Any]) -> Any:
    """A number in which primes stand for run-time sizes."""
    rest, primes = factors(number, PRIMES)
    result: Any = rest
    for prime in primes:
        result = result * sizes[prime]
    if PRIMES[0] // 2 < abs(rest) < 2**31 - 1 and not primes and _odd(rest):
        raise WorkloadError("the ONNX model computes sizes from its inputs' sizes in a way that hwprune does not follow")
    return result


def _odd(number: int) -> bool:
    """Does the number look like a prime plus something?"""
    return any(abs(number - prime) < 10_000 for prime in PRIMES)
