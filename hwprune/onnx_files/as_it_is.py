"""Nodes that ONNX Runtime computes as they stand in the file (``If``, ``Loop``, ``NonMaxSuppression``), because hwprune does not.

To PyTorch each is one operator, ``hwprune::onnx_node``. No gradient passes it, and its tensors keep all their axes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper

from hwprune.errors import WorkloadError
from hwprune.onnx_files.operators import torch_dtype
from hwprune.structure.onnx.flatten import captured
from hwprune.structure.symbols import PRIMES, factors

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
"""Operators of which every runtime of ONNX files knows."""
QUANTISED = frozenset(
    (
        "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QLinearAdd", "QLinearMul",
        "QGemm", "QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu",
        "QLinearSoftmax", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "QAttention",
    )
)  # fmt: skip
"""Operators whose weights are integers with scales on the side: nothing of them can be cut."""


Sizes = tuple[int | None, ...]


@dataclass(slots=True)
class Kept:
    """One node with all that it reads.

    Attributes:
        names: the tensors that it reads, those that nested graphs read from outside last.
        model: a model of this node alone.
        kinds: PyTorch's types of what it reads, as declared.
        given: sizes of what it reads: numbers, with primes for what is known at run time only, or None.
        told: those of its results.
        seen: sizes of inputs and results, and the types of results, of runs so far; what the file does not tell is learned so.
    """

    names: tuple[str, ...]
    model: bytes
    kinds: tuple[torch.dtype, ...]
    given: tuple[Sizes | None, ...]
    told: tuple[Sizes | None, ...]
    seen: list[tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[torch.dtype]]] = field(default_factory=list)


RUNS = 4
"""Runs of a node whose sizes are remembered."""
_KEPT: dict[str, Kept] = {}
_SESSIONS: dict[str, Any] = {}


def keep(node: onnx.NodeProto, model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto]) -> tuple[str, Kept]:
    """(key, node) of a node that the runtime is to compute.

    Raises:
        WorkloadError: it reads what isn't a tensor of a known type.
    """
    inner = sorted(name for name in captured(node) if name in types)
    names = tuple(dict.fromkeys([*(name for name in node.input if name), *inner]))
    results = [name for name in node.output if name]
    for name in names:
        if name not in types or not types[name].HasField("tensor_type"):
            raise WorkloadError(
                f"the ONNX model's {node.op_type} ({node.name or results[0]}) can't be kept as it is: {name} is no tensor of a "
                "known type"
            )
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info(name, types[name].tensor_type.elem_type, None) for name in names],
        [onnx.ValueInfoProto(name=name) for name in results],  # the runtime finds the types out
    )
    alone = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=min(model.ir_version, 10))
    dtypes = tuple(torch_dtype(types[name].tensor_type.elem_type) for name in names)
    given, told = (tuple(sizes_of(types.get(name)) for name in group) for group in (names, results))
    text = alone.SerializeToString()
    key = hashlib.sha256(text + repr((given, told)).encode()).hexdigest()[:32]
    return key, _KEPT.setdefault(key, Kept(names, text, dtypes, given, told))


def sizes_of(kind: onnx.TypeProto | None) -> Sizes | None:
    """The sizes of a type, as far as they are known; None where not even the rank is."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.tensor_type.shape.dim)


def compute(key: str, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The results of a kept node, on the device of its inputs."""
    return list(torch.ops.hwprune.onnx_node(list(tensors), key))


@torch.library.custom_op("hwprune::onnx_node", mutates_args=())
def onnx_node(inputs: Sequence[torch.Tensor], key: str) -> list[torch.Tensor]:
    import onnxruntime

    kept = _KEPT[key]
    if key not in _SESSIONS:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        _SESSIONS[key] = onnxruntime.InferenceSession(kept.model, options, providers=["CPUExecutionProvider"])
    feed = {
        name: x.detach().cpu().to(kind).contiguous().numpy() for name, x, kind in zip(kept.names, inputs, kept.kinds, strict=True)
    }
    device = inputs[0].device if inputs else torch.device("cpu")
    # A result may be the very array that went in, which an operator must not return.
    results = [torch.from_numpy(np.array(value)) for value in _SESSIONS[key].run(None, feed)]
    if len(kept.seen) < RUNS:
        kept.seen.append(([tuple(x.shape) for x in inputs], [tuple(r.shape) for r in results], [r.dtype for r in results]))
    return [_as_wide(result, inputs).to(device) for result in results]


def _as_wide(result: torch.Tensor, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The result in 64 bits where the model around is computed so."""
    wide = any(x.dtype is torch.float64 for x in inputs) and result.dtype is torch.float32
    return result.double() if wide else result


@onnx_node.register_fake
def _(inputs: Sequence[torch.Tensor], key: str) -> list[torch.Tensor]:
    kept = _KEPT[key]
    if not kept.seen:
        raise ValueError("a node whose results are not known before it has run once")
    context = torch.library.get_ctx()
    known: dict[int, Any] = {}
    for x, sizes in zip(inputs, kept.given, strict=True):
        for position, size in enumerate(sizes or ()):
            if size in PRIMES:
                known.setdefault(size, x.shape[position])

    def size_of(number: int, position: int) -> Any:
        told = kept.told[number]
        size = told[position] if told is not None else None
        rest, primes = factors(size, PRIMES) if size is not None else (0, [])
        if size is not None and all(prime in known for prime in primes):
            result: Any = rest
            for prime in primes:
                result = result * known[prime]
            return result
        found = _learned(kept, number, position)
        if found is None:
            return context.new_dynamic_size()
        return found if isinstance(found, int) else inputs[found[0]].shape[found[1]] * found[2]

    wide = any(x.dtype is torch.float64 for x in inputs)
    made = []
    device = inputs[0].device if inputs else torch.device("cpu")
    for number, (shape, dtype) in enumerate(zip(kept.seen[0][1], kept.seen[0][2], strict=True)):
        kind = torch.float64 if wide and dtype is torch.float32 else dtype
        made.append(torch.empty([size_of(number, position) for position in range(len(shape))], dtype=kind, device=device))
    return made


def learned(kept: Kept, number: int) -> Sizes | None:
    """The sizes of a result as the runs so far show them, with primes for what is free; None where they don't tell."""
    sizes: list[int | None] = []
    for position in range(len(kept.seen[0][1][number]) if kept.seen else 0):
        found = _learned(kept, number, position)
        if found is None:
            return None
        if isinstance(found, int):
            sizes.append(found)
            continue
        given = kept.given[found[0]]
        size = given[found[1]] if given is not None else None
        if size is None:
            return None
        sizes.append(size * found[2])
    return tuple(sizes) if kept.seen else None


def _learned(kept: Kept, number: int, position: int) -> int | tuple[int, int, int] | None:
    """The size of a result by the runs so far: a number, or (input, dim, factor); None where they don't tell."""
    if len({tuple(inputs) for inputs, _, _ in kept.seen}) < 2:
        return None
    sizes = [results[number][position] for _, results, _ in kept.seen]
    if len(set(sizes)) == 1:
        return sizes[0]
    for place, first in enumerate(kept.seen[0][0]):
        for dim, size in enumerate(first):
            ratio = sizes[0] // size if size else 0
            if ratio and all(inputs[place][dim] * ratio == s for (inputs, _, _), s in zip(kept.seen, sizes, strict=True)):
                return place, dim, ratio
    return None
