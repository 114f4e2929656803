"""The quantisers: int8, int4 and fp16 of an ONNX file."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from hwprune.onnx_files import to_onnx

CALIBRATION = 256
"""Examples that the ranges of activations are taken from."""
BLOCK = 32
"""Weights of a row that share a scale in 4 bits."""
LEAST_COLUMNS = 2 * BLOCK
"""Inputs below which a 4-bit layer holds more scale than weight, and its kernel has nothing to gain."""
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOWING = (
    *WEIGHTED,
    "Add",
    "Relu",
    "Clip",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
    "Reshape",
    "Transpose",
    "Flatten",
)
"""In a convolutional network what lies between two layers is quantised too, so that activations stay in 8 bits on the way."""
Batches = Callable[[], Iterable[Sequence[np.ndarray[Any, Any]]]]
"""Called anew for each pass: batches of the model's inputs, in order."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was quantised.

    Attributes:
        precision: see `PRECISIONS`.
        layers, weighted: weighted operators in that precision, and all of them.
        examples, calibration: how many examples ranges were taken from, and the SHA-256 of those; 0 and empty where none are
            needed.
        zeros: share of the weights that are exactly zero, over the same share before; at least 1 if what was removed stays so.
        bits: that a weight uses; 7 of 8 where the device's kernels would overflow.
    """

    precision: str
    layers: int
    weighted: int
    examples: int = 0
    calibration: str = ""
    zeros: float = 1.0
    bits: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Integers:
    """What the device wants of 8-bit integers.

    Attributes:
        symmetric: activations in signed integers without a zero point, and biases in 32-bit floats, as TensorRT wants them; else
            unsigned with one, and biases in 32-bit integers, as x86 does.
        saturating: its kernels add pairs of products in 16 bits, which overflow: x86 with AVX2 or AVX-512 and without VNNI.
            Weights then take 7 bits. (OpenVINO's and ONNX Runtime's documentation, "saturation issue", "reduce range".)
    """

    symmetric: bool = False
    saturating: bool = False


def to_int8(model: onnx.ModelProto, batches: Batches, integers: Integers) -> tuple[onnx.ModelProto, Facts]:
    """Static, QDQ, weights per channel and symmetric."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [item.name for item in model.graph.input]
    reader = _Reader(batches, names)
    with tempfile.TemporaryDirectory(prefix="hwprune-int8-") as folder:
        ready, done = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(model, str(ready), skip_optimization=True, skip_symbolic_shape=True)
        wanted = _weighted(onnx.load(str(ready)))
        convolutional = sum(kind == "Conv" for kind in wanted.values()) > len(wanted) / 2
        quantize_static(
            str(ready), str(done), reader, quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8 if integers.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8, reduce_range=integers.saturating, calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=list(FLOWING) if convolutional else list(WEIGHTED),
            nodes_to_exclude=_dynamic(onnx.load(str(ready))),
            extra_options={
                "WeightSymmetric": True, "ActivationSymmetric": integers.symmetric, "DedicatedQDQPair": False,
                "QuantizeBias": not integers.symmetric,  # TensorRT reads no integers of 32 bits as weights
            },
        )  # fmt: skip
        quantised = onnx.load(str(done))
    bits = 7 if integers.saturating else 8
    return quantised, Facts(
        "int8", _behind_dequantize(quantised), len(wanted), reader.examples, reader.digest.hexdigest(), bits=bits
    )


def to_int4(model: onnx.ModelProto, batches: Batches, integers: Integers) -> tuple[onnx.ModelProto, Facts]:  # noqa: ARG001 - one interface
    """Weights of linear layers in blocks of 32 that share a scale (round to nearest); activations stay as they are."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    wanted = _weighted(model)
    _gemm_to_matmul(model)
    stored = {item.name: item for item in model.graph.initializer}
    small = [
        node.name for node in model.graph.node
        if node.op_type == "MatMul" and (node.input[1] not in stored or stored[node.input[1]].dims[0] < LEAST_COLUMNS)
    ]  # fmt: skip
    quantiser = MatMulNBitsQuantizer(model, bits=4, block_size=BLOCK, is_symmetric=True, accuracy_level=4, nodes_to_exclude=small)
    quantiser.process()
    quantised = quantiser.model.model
    return quantised, Facts("int4", sum(node.op_type == "MatMulNBits" for node in quantised.graph.node), len(wanted), bits=4)


def to_fp16(model: onnx.ModelProto, batches: Batches, integers: Integers) -> tuple[onnx.ModelProto, Facts]:  # noqa: ARG001 - one interface
    wanted = _weighted(model)
    converted = to_onnx.converted(model, "fp16")
    halves = {item.name for item in converted.graph.initializer if item.data_type == TensorProto.FLOAT16}
    done = sum(node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in halves for node in converted.graph.node)
    return converted, Facts("fp16", done, len(wanted), bits=16)


class _Reader:
    """ONNX Runtime's interface for calibration data; one example at a time would be as slow as it sounds, so batches go whole."""

    def __init__(self, batches: Batches, names: Sequence[str]) -> None:
        self._batches, self._names = batches, names
        self.examples = 0
        self.digest = hashlib.sha256()
        self._left = self._read()

    def _read(self) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
        for arrays in self._batches():
            if self.examples >= CALIBRATION:
                return
            taken = [np.ascontiguousarray(array) for array in arrays]  # whole: a model may have its batch fixed
            self.examples += len(taken[0])
            for array in taken:
                self.digest.update(array.tobytes())
            yield dict(zip(self._names, taken, strict=False))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        return next(self._left, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """The library asks for it where it divides the data; ranges are taken from all of it."""


def _weighted(model: onnx.ModelProto) -> dict[str, str]:
    """Name -> operator of all nodes with a constant weight."""
    constants = {item.name for item in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    operators = {}
    for node in model.graph.node:
        if node.op_type in WEIGHTED and len(node.input) > 1 and _constant(node.input[1], constants, makers):
            operators[node.name or node.output[0]] = node.op_type
    return operators


def _constant(name: str, constants: set[str], makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Does a tensor come from an initializer alone, through casts and transposes?"""
    while name in makers and makers[name].op_type in ("Cast", "Transpose", "Identity", "DequantizeLinear", "QuantizeLinear"):
        name = makers[name].input[0]
    return name in constants or (name in makers and makers[name].op_type == "Constant")


def _dynamic(model: onnx.ModelProto) -> list[str]:
    """Products of two activations: attention. In 8 bits they gain little and lose much."""
    weighted = _weighted(model)
    return [node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.name not in weighted]


def _behind_dequantize(model: onnx.ModelProto) -> int:
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    return sum(
        node.op_type in WEIGHTED and all(makers.get(name) == "DequantizeLinear" for name in node.input[:2])
        for node in model.graph.node
    )


def _gemm_to_matmul(model: onnx.ModelProto) -> None:
    """4-bit kernels are of MatMul; a Gemm with a constant weight is the same and a sum."""
    stored = {item.name: item for item in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        settings = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        plain = settings.get("alpha", 1.0) == 1.0 and settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
        if node.op_type != "Gemm" or node.input[1] not in stored or not plain:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(stored[node.input[1]])
        turned = f"{node.input[1]}.{'rows' if settings.get('transB', 0) else 'columns'}"
        if turned not in stored:
            matrix = numpy_helper.from_array(np.ascontiguousarray(weight.T if settings.get("transB", 0) else weight), turned)
            model.graph.initializer.append(matrix)
            stored[turned] = matrix
        biased = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}.product" if biased else node.output[0]
        nodes.append(
            onnx.helper.make_node("MatMul", [node.input[0], turned], [product], name=f"{node.name or node.output[0]}.matmul")
        )
        if biased:
            nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}.bias"))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    used = {name for node in model.graph.node for name in node.input} | {item.name for item in model.graph.output}
    kept = [item for item in model.graph.initializer if item.name in used]
    copied = [TensorProto.FromString(item.SerializeToString()) for item in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copied)


@contextmanager
def quiet() -> Iterator[None]:
    """The library advises on the root logger, and prints progress of its own."""
    loggers = [logging.getLogger(), logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
