"""ONNX files made tidy: what the exporter leaves behind is folded away, what describes this machine is removed."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from hwprune.errors import CandidateFailure
from hwprune.onnx_files import qdq
from hwprune.structure.onnx.flatten import FLOATS, captured, without_graph
from hwprune.structure.onnx.values import Array, attributes, compute

_FOLDED = frozenset("Transpose Reshape Identity Cast Unsqueeze Squeeze Concat Slice".split())  # noqa: SIM905
"""The operators that exporters put between an initializer and its use."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter, which prints progress and warns about packages that hwprune does not use."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def prepare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fold everything that doesn't depend on the weights: the result is the same for any weights of any cut.

    onnxscript's optimiser folds whatever is constant, so the weights pass it as inputs. Raises `CandidateFailure`.
    """
    from onnxscript import optimizer

    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    weights = [item for item in proto.graph.initializer if item.data_type in FLOATS]
    names = {item.name for item in weights}
    if any(item.name in names for item in proto.graph.output):  # the optimiser would rename a weight that is an output
        strip(bare)
        return bare
    rest = [item for item in proto.graph.initializer if item.name not in names]
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(rest)
    bare.graph.input.extend(onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)) for item in weights)
    try:
        with quiet():
            result = optimizer.optimize(bare)
    except Exception as error:  # a pass that fails raises its own type
        raise CandidateFailure("export", f"{type(error).__name__}: {error}") from error
    assert isinstance(result, onnx.ModelProto)
    inputs = [item for item in result.graph.input if item.name not in names]
    del result.graph.input[:]
    result.graph.input.extend(inputs)
    result.graph.initializer.extend(weights)
    strip(result)
    return result


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold batch norm into the convolution before it, and whatever rearranges an initializer into the initializer.

    Weights that were whole numbers in the user's file are whole numbers again.
    """
    stored = {item.name: item for item in model.graph.initializer}
    arrays: dict[str, Array] = {}

    def read(name: str) -> Array:
        if name not in arrays:
            arrays[name] = numpy_helper.to_array(stored[name])
        return arrays[name]

    uses = Counter(name for node in model.graph.node for name in (*node.input, *captured(node)))
    outputs = {item.name for item in model.graph.output}
    computed: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []
    convolutions: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        constant = all(name in stored or name in computed for name in node.input) and bool(node.input)
        if node.op_type in _FOLDED and constant and node.output[0] not in outputs:
            given = [computed[name] if name in computed else read(name) for name in node.input]
            result = compute(node.op_type, attributes(node), given)
            if result is not None:
                computed[node.output[0]] = result
                continue
        if node.op_type == "Conv" and all(name in stored for name in node.input[1:] if name):
            convolutions[node.output[0]] = node
        before = convolutions.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        alone = uses[node.input[0]] == 1 and node.input[0] not in outputs
        if before is not None and alone and all(name in stored for name in node.input[1:]):
            weights = [read(name) if name else None for name in before.input[1:]]
            folded = _fold_batch_norm(node, [read(name) for name in node.input[1:]], weights)
            if folded is not None:
                names = _folded_names(before, uses)
                computed.update(zip(names, folded, strict=True))
                merged = onnx.NodeProto()
                merged.CopyFrom(before)
                del merged.input[1:]
                merged.input.extend(names)
                merged.output[0] = node.output[0]
                nodes[next(i for i in range(len(nodes) - 1, -1, -1) if nodes[i] is before)] = merged
                continue
        nodes.append(node)
    needed = outputs | {name for node in nodes for name in (*node.input, *captured(node))}
    result = onnx.ModelProto()
    result.CopyFrom(without_graph(model))
    graph = result.graph
    graph.name = model.graph.name
    graph.node.extend(nodes)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.initializer.extend(item for name, item in stored.items() if name in needed and name not in computed)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(computed[name], order="C"), name) for name in computed if name in needed
    )
    return qdq.folded(result)


def _folded_names(node: onnx.NodeProto, uses: Counter[str]) -> list[str]:
    """The convolution's own names where nothing else reads them."""
    weight = node.input[1] if uses[node.input[1]] == 1 else f"{node.input[1]}.{node.output[0]}"
    own_bias = len(node.input) > 2 and bool(node.input[2]) and uses[node.input[2]] == 1
    return [weight, node.input[2] if own_bias else f"{weight}.folded_bias"]


def _fold_batch_norm(node: onnx.NodeProto, statistics: list[Array], weights: list[Array | None]) -> list[Array] | None:
    """Weight and bias of the convolution with the batch norm after it; computed in float64."""
    options = attributes(node)
    if options.get("training_mode", 0):
        return None
    weight, bias = weights[0], weights[1] if len(weights) > 1 else None
    assert weight is not None  # a convolution has one
    gain, shift, mean, variance = (statistic.astype(np.float64) for statistic in statistics)
    scale = gain / np.sqrt(variance + options.get("epsilon", 1e-5))
    start = 0.0 if bias is None else bias.astype(np.float64)
    return [
        (weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))).astype(weight.dtype),
        ((start - mean) * scale + shift).astype(weight.dtype),
    ]


def strip(proto: onnx.ModelProto) -> None:
    """Remove the stack traces with the paths of this machine that the exporter writes into every node."""
    del proto.metadata_props[:]
    graph = proto.graph
    del graph.metadata_props[:]
    for group in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in group:
            del item.metadata_props[:]
    for function in proto.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
