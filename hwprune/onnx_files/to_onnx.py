"""Candidate -> files: ONNX, .pt2, safetensors, recipe. Nothing is pickled."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors.torch import save

from hwprune.common.files import write_atomic
from hwprune.errors import CandidateFailure, described
from hwprune.onnx_files import interface_names, own_names, tidy
from hwprune.onnx_files.lowering import lowered
from hwprune.structure.onnx.flatten import write_notes
from hwprune.structure.torch.free_sizes import free_batch
from hwprune.structure.torch.opaque import opaque_model

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
OPSET = 20
RECORDED_OPSET = 17
"""The opset of the exporter that records one run; it knows no newer ones."""
INLINE_LIMIT = 1_500_000_000
"""Bytes of weights above which they go into a file beside the model: a protobuf holds 2 GB at most."""


def to_onnx(
    module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], path: Path, origin: onnx.ModelProto | None = None
) -> Path:
    """Write ``module`` as ONNX with a free batch, and a free number of tokens, where the model allows that.

    Args:
        origin: the ONNX model that the module was made of; what its maker wrote into it is copied.

    Raises:
        CandidateFailure: the exporter refuses; the reason is its first line.
    """
    model = tidy.fold(tidy.prepare(exported(module, example_inputs)))
    if origin is not None:
        write_notes(origin, model)
    return save_onnx(model, path)


def _trace_inputs(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Inputs and dynamic shapes: the batch and the number of tokens are free if they were when the model was captured."""
    if isinstance(module, torch.fx.GraphModule) and not module.meta.get("free_batch", True):
        return tuple(example_inputs), None
    length = isinstance(module, torch.fx.GraphModule) and bool(module.meta.get("free_length"))
    return free_batch(module, example_inputs, length=length)


def exported(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor]) -> onnx.ModelProto:
    """The graph as the exporter makes it, not optimised: parameters keep their names. Raises `CandidateFailure`."""
    inputs, shapes = _trace_inputs(module, example_inputs)
    module.eval()
    if (model := opaque_model(module)) is not None:
        return _recorded(model, inputs)
    given = lowered(module)
    try:
        with tidy.quiet():
            program = torch.onnx.export(
                own_names.set_apart(given), inputs, dynamo=True, verbose=False, opset_version=OPSET, dynamic_shapes=shapes,
                optimize=False,
            )  # fmt: skip
            assert program is not None  # None only for the deprecated exporter
            return interface_names.give(own_names.restored(program.model_proto), module)
    except Exception as error:  # the exporter raises what torch.export and onnxscript raise
        raise CandidateFailure("export", _reason(error)) from error


def _reason(error: BaseException) -> str:
    """What the exporter's own errors hide behind advice for PyTorch's developers: the error that began it."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return _COLOURS.sub("", described(error))


def _recorded(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> onnx.ModelProto:
    """The run of an untraceable model on these inputs; on others it may do otherwise, so outputs are compared on real data."""
    names = [f"input_{position}" for position in range(len(inputs))]
    axes = {name: {0: "batch"} for name, x in zip(names, inputs, strict=True) if x.ndim}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            with tidy.quiet():
                torch.onnx.export(
                    module, inputs, path, dynamo=False, opset_version=RECORDED_OPSET, input_names=names, dynamic_axes=axes,
                    do_constant_folding=False,
                )  # fmt: skip
        except Exception as error:  # the exporter raises its own types
            raise CandidateFailure("export", _reason(error)) from error
        return onnx.load(str(path))


def save_onnx(proto: onnx.ModelProto, path: Path) -> Path:
    """Write it whole or not at all; large weights go into a file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if proto.ByteSize() > INLINE_LIMIT:
        onnx.save(proto, str(path), save_as_external_data=True, location=path.name + ".data")
    else:
        write_atomic(path, proto.SerializeToString())
    return path


def convert(path: Path, precision: str) -> None:
    """Rewrite an ONNX file in ``fp16``; see `converted`. Raises `CandidateFailure`."""
    save_onnx(converted(onnx.load(str(path)), precision), path)


def converted(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The model in ``fp16``; inputs and outputs stay in 32 bits, as do operators that need the range.

    Strongly typed runtimes (TensorRT) take the precision from the file. Uses ONNX Runtime's own converter.

    Raises:
        CandidateFailure: the model can't be converted.
    """
    try:
        if precision == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            with tidy.quiet():
                given = model
                model = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=False)
                write_notes(given, model)
            _sort(model.graph)  # the converter appends its casts at the end
        elif precision != "fp32":
            raise ValueError(f"there is no converter to {precision}; export such a model from PyTorch in it")
    except Exception as error:  # the converter raises what it meets
        raise CandidateFailure("export", f"conversion to {precision}: {error}") from error
    return model


def _sort(graph: onnx.GraphProto) -> None:
    """Put the nodes into topological order, otherwise as they stand."""
    available = {item.name for item in (*graph.input, *graph.initializer)} | {""}
    waiting, done = list(graph.node), []
    outputs = {name for node in waiting for name in node.output}
    while waiting:
        ready = [n for n in waiting if all(name in available or name not in outputs for name in n.input)]
        if not ready:
            raise ValueError("the converted graph has a cycle")
        for node in ready:
            available.update(node.output)
        done += ready
        taken = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in taken]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in done]
    del graph.node[:]
    graph.node.extend(copies)


def to_pt2(module: torch.nn.Module, example_inputs: Sequence[torch.Tensor], path: Path) -> Path:
    """Write ``module`` as an exported program, without sample inputs (torch would pickle them)."""
    inputs, shapes = _trace_inputs(module, example_inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tidy.quiet():
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes, strict=False)
        program._example_inputs = None
        torch.export.save(program, path)
    return path


def to_safetensors(module: torch.nn.Module, path: Path) -> Path:
    """Write the state dict; a tensor known by several names is stored under each."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    write_atomic(path, save(state))
    return path
