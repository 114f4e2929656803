"""Post-training quantisation of an ONNX file, by ONNX Runtime's own quantisers.

A quantised model is one more candidate: its file is scored and measured like any other. What is added here to the library is what
its defaults get wrong for pruned models: which operators are worth it, which stay in 32 bits, that removed weights stay exactly
zero (weights are symmetric, so that zero is a code of its own; N:M keeps its pattern), and what the calibration data was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper

from hwprune.deploy import quantised_check
from hwprune.deploy.normalising import normalise
from hwprune.deploy.onnx_quantisers import Batches, Facts, Integers, quiet, to_fp16, to_int4, to_int8
from hwprune.errors import CandidateFailure, UnknownNameError, UsageError, described
from hwprune.onnx_files import to_onnx
from hwprune.structure.onnx.flatten import write_notes

STAGE = "quantise"
LEAST_ZEROS = 0.01
"""Share of zeros below which a model counts as one from which no weights were masked."""


def quantise(
    model: onnx.ModelProto,
    precision: str,
    batches: Batches,
    path: Path,
    integers: Integers | None = None,
) -> Facts:
    """Write ``model`` (32 bits) in ``precision`` to ``path``.

    Args:
        batches: calibration inputs; of ``int8`` only.
        integers: of ``int8`` only.

    Raises:
        UnknownNameError: no such precision.
        CandidateFailure: (stage ``quantise``) nothing in the model takes this precision, or the quantiser refuses.
    """
    check(precision)
    try:
        dense = onnx.ModelProto()
        dense.CopyFrom(model)  # quantisers change what they are given
        normalise(dense)
        _name_nodes(dense)
        whole = onnx.ModelProto()
        whole.CopyFrom(dense)
        before = _zeros(dense)
        with quiet():
            quantised, facts = PRECISIONS[precision].make(dense, batches, integers or Integers())
        if not facts.layers:
            raise CandidateFailure(STAGE, f"none of the model's {facts.weighted} weighted operators can be held in {precision}")
        after = _zeros(quantised)
        write_notes(model, quantised)
        example = next(iter(batches()), None)
        if example is not None and (wrong := quantised_check.faults(whole, quantised, example, facts.bits)):
            raise CandidateFailure(STAGE, f"{precision} is wrong by more than rounding explains: {'; '.join(wrong[:3])}")
        to_onnx.save_onnx(quantised, path)
    except CandidateFailure:
        raise
    except Exception as error:  # the quantisers, and protobuf, raise what they meet
        raise CandidateFailure(STAGE, f"{precision}: {described(error)}") from error
    return Facts(**{**asdict(facts), "zeros": after / before if before > LEAST_ZEROS else 1.0})


def _name_nodes(model: onnx.ModelProto) -> None:
    """A name of its own for each node: quantisers tell them apart by nothing else, and an ONNX file need not have any."""
    seen: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}.{place}"
        seen.add(node.name)


def check(precision: str) -> None:
    """Raises `UnknownNameError`."""
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, list(PRECISIONS))


def parse(text: str) -> tuple[str, ...]:
    """``int8,int4``: names, each once. Raises `UnknownNameError`, `UsageError`."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        check(name)
    if len(set(names)) < len(names):
        raise UsageError(f"a precision is named twice in {text!r}")
    return names


# -- the precisions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Precision:
    """One way to hold the weights. ``tolerance``: of parity between machines, relative to the largest output."""

    description: str
    make: Callable[[onnx.ModelProto, Batches, Integers], tuple[onnx.ModelProto, Facts]]
    tolerance: float


PRECISIONS: Mapping[str, Precision] = {
    "int8": Precision("static INT8 with Q/DQ, weights per channel, ranges of activations from calibration data", to_int8, 5e-2),
    "int4": Precision("weights of linear layers in 4 bits, blocks of 32 (MatMulNBits)", to_int4, 2e-2),
    "fp16": Precision("16-bit floating point, inputs and outputs in 32", to_fp16, 2e-2),
}


# -- pieces ------------------------------------------------------------------------------------------


def _zeros(model: onnx.ModelProto) -> float:
    """Share of weights that are zero, over all constants with at least two dims: floating point, 8-bit integers, 4-bit codes.

    Symmetric 4-bit weights are stored as codes 0 to 15, two in a byte, of which 8 is zero.
    """
    zero = total = 0
    packed = {node.input[1] for node in model.graph.node if node.op_type == "MatMulNBits" and len(node.input) < 4}
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8)
    for item in model.graph.initializer:
        if item.name in packed:
            codes = numpy_helper.to_array(item)
            zero += int(((codes & 15) == 8).sum() + ((codes >> 4) == 8).sum())
            total += 2 * codes.size
        elif len(item.dims) > 1 and item.data_type in kinds:
            array = numpy_helper.to_array(item)
            zero += int((array == 0).sum())
            total += array.size
    return zero / total if total else 0.0
