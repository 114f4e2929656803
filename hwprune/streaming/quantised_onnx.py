"""ONNX files with a cache whose weights have 8 or 4 bits, in blocks of 32 that share a scale; activations stay as they are.

Single tokens wait for weights to come from memory, so that fewer bits are less time. ONNX Runtime's MatMulNBits computes with
them; the embedding has 16 bits beside weights of 8, and 4 beside 4 (GatherBlockQuantized). The product that makes the logits
keeps 8 beside 4: rounded to 4, it alone costs half as much as all others together (docs/figures/language.md). Ranges of
activations are not needed: those of language models have outliers, for which static INT8 is no good.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from hwprune.common.telling import Tell, silent
from hwprune.deploy.onnx_quantisers import BLOCK, quiet
from hwprune.errors import RunError, UsageError, described
from hwprune.onnx_files.to_onnx import save_onnx
from hwprune.streaming.cached_onnx import PAST, CacheShape

PRECISIONS = ("int8", "int4")
INT8_COMPUTE = 4
"""MatMulNBits' accuracy level: activations are rounded to 8 bits while a product is computed."""


def parse(text: str) -> tuple[str, ...]:
    """``int8,int4``. Raises `UsageError`."""
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in PRECISIONS]:
        raise UsageError(f"--quantize of a language model takes {', '.join(PRECISIONS)}, got {unknown[0]!r}")
    return names


def write_quantised(source: Path, precision: str, path: Path) -> int:
    """Write ``source`` (32 bits) with weights of fewer bits; returns how many products have them.

    Raises:
        UsageError: there is no such precision, the quantiser refuses, or no product has constant weights.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    (precision,) = parse(precision)
    model = onnx.load(str(source))
    _turn_constants(model.graph)
    passes: list[tuple[int, tuple[str, ...], list[str]]] = [(8, ("MatMul",), [])]
    if precision == "int4":
        passes.insert(0, (4, ("MatMul", "Gather"), _last_product(model.graph)))
    made = model
    try:
        with quiet():
            for bits, kinds, left_out in passes:
                quantiser = MatMulNBitsQuantizer(
                    made, bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_COMPUTE, op_types_to_quantize=kinds,
                    quant_axes=(("MatMul", 0), ("Gather", 1)), nodes_to_exclude=left_out,
                )  # fmt: skip
                quantiser.process()
                made = quantiser.model.model
    except Exception as error:  # the quantiser raises what it meets
        raise UsageError(f"{precision}: {described(error)}") from error
    count: int = sum(node.op_type == "MatMulNBits" for node in made.graph.node)
    if not count:
        raise UsageError(f"no product in {source} has constant weights that {precision} could hold")
    _halve_embeddings(made.graph)
    save_onnx(made, path)
    return count


def window_losses(path: Path, ids: torch.Tensor, step: Tell = silent) -> torch.Tensor:
    """(windows,) mean negative log-likelihood of each window's tokens after its first, in nats, as ONNX Runtime computes it.

    Args:
        ids: (windows, tokens).

    Raises:
        RunError: it does not run.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        empty = dict(zip([name for name in names if name.startswith(PAST)], CacheShape.of_file(path).empty(1, 0), strict=True))
        found = []
        for window in range(len(ids)):
            step("evaluating windows", window, len(ids))
            logits = session.run(["logits"], {"input_ids": ids[window : window + 1].numpy()} | empty)[0]
            words = torch.from_numpy(logits[0, :-1])
            found.append(float(torch.nn.functional.cross_entropy(words, ids[window, 1:])))
    except Exception as error:  # the runtime raises what it meets
        raise RunError(f"{path} does not run: {described(error)}") from error
    return torch.tensor(found, dtype=torch.float64)


def _last_product(graph: Any) -> list[str]:
    """The name of the product that makes the logits; none where it can't be told."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get("logits")
    while node is not None and node.op_type != "MatMul":  # a scale, a cap of the logits
        node = makers.get(node.input[0])
    if node is None:
        return []
    node.name = node.name or "logits.product"
    return [node.name]


def _turn_constants(graph: Any) -> None:
    """Constants that a node transposes are stored so: the quantiser looks at constants alone (an output layer that is tied to the
    embedding)."""
    stored = {item.name: item for item in graph.initializer}
    left = []
    for node in graph.node:
        if node.op_type != "Transpose" or node.input[0] not in stored or len(stored[node.input[0]].dims) != 2:
            left.append(node)
            continue
        array = np.ascontiguousarray(numpy_helper.to_array(stored[node.input[0]]).T)
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    _replace(graph.node, left)


def _halve_embeddings(graph: Any) -> None:
    """Large constants in 32 bits that are only looked up get 16."""
    stored = {item.name: item for item in graph.initializer}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    halved: set[str] = set()
    nodes = []
    for node in graph.node:
        nodes.append(node)
        name = node.input[0] if node.op_type == "Gather" else ""
        item = stored.get(name)
        if item is None or item.data_type != TensorProto.FLOAT or len(item.dims) != 2 or set(readers[name]) != {"Gather"}:
            continue
        halved.add(name)
        wide, half = node.output[0], f"{node.output[0]}.half"
        node.output[0] = half
        nodes.append(helper.make_node("Cast", [half], [wide], name=f"{node.name}.wide", to=TensorProto.FLOAT))
    _replace(graph.node, nodes)
    kept = [
        numpy_helper.from_array(numpy_helper.to_array(item).astype(np.float16), item.name) if item.name in halved else item
        for item in graph.initializer
    ]
    used = {name for node in graph.node for name in node.input}
    _replace(graph.initializer, [item for item in kept if item.name in used])


def _replace(field: Any, items: list[Any]) -> None:
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)
