"""The process that converts ONNX files into the formats of other runtimes (`hwprune.runtimes.conversion` starts it).

One JSON line asks, one answers (`hwprune.runtimes.conversion`); what converters print goes to stderr. All get a model whose sizes
are fixed and whose computations of shapes are folded by ONNX Runtime's own offline optimiser: free sizes are where they
fail, or go wrong without a word.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hwprune.deploy import known_forms
from hwprune.errors import described
from hwprune.runtimes.base import library_version
from hwprune.runtimes.conversion import EXPECTED
from hwprune.runtimes.converter_process import ConversionError
from hwprune.workload.onnx_file import import_module

SEED = 0
DEPTH = 100  # lines of a converter's output that an error may quote from


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Convert one model; an exception becomes an answer."""
    started, folder = time.monotonic(), Path(request["folder"])
    try:
        with tempfile.TemporaryDirectory() as scratch:
            fixed = Path(scratch) / "model.onnx"
            signature = fix_sizes(Path(request["source"]), request["shapes"], fixed, folder / EXPECTED)
            facts = CONVERTERS[request["kind"]](fixed, folder, signature)
    except ConversionError as error:
        return {"error": str(error), "refused": error.refused}
    except Exception as error:  # converters raise their own types
        return {"error": described(error)}
    return {"signature": signature, "seconds": time.monotonic() - started, **facts}


def fix_sizes(source: Path, shapes: Sequence[Sequence[int]], out: Path, expected: Path) -> dict[str, Any]:
    """Write the model with fixed sizes, folded, and what ONNX Runtime computes of made-up inputs; its signature.

    Args:
        shapes: of the inputs; empty: as the file says, with 1 for free sizes.
    """
    import onnxruntime

    model = onnx.load(str(source))
    stored = {item.name for item in model.graph.initializer}  # files of long ago list them among the inputs
    for place, item in enumerate([item for item in model.graph.input if item.name not in stored]):
        dims = item.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            size = shapes[place][axis] if place < len(shapes) and axis < len(shapes[place]) else dim.dim_value or 1
            dim.Clear()
            dim.dim_value = int(size)
    for item in model.graph.output:  # they follow from the inputs, and a name of a free size would contradict them
        item.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # only operators of ONNX itself
    settings.optimized_model_filepath = str(out)
    settings.log_severity_level = 3
    # A model that computes nothing would become one without a node, which no session can be made of.
    whole = ["EliminateIdentity"] if all(node.op_type == "Identity" for node in model.graph.node) else None
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"], disabled_optimizers=whole
    )
    inputs = made_up(session)
    outputs = session.run(None, {item.name: array for item, array in zip(session.get_inputs(), inputs, strict=True)})
    np.savez(
        expected,
        allow_pickle=False,
        **{f"in{place:03d}": array for place, array in enumerate(inputs)},
        **{f"out{place:03d}": array for place, array in enumerate(outputs)},
    )
    _with_sizes(out, outputs)
    return {
        side: [[item.name, array.dtype.name, list(array.shape)] for item, array in zip(items, arrays, strict=True)]
        for side, items, arrays in (("inputs", session.get_inputs(), inputs), ("outputs", session.get_outputs(), outputs))
    }


def _with_sizes(path: Path, outputs: Sequence[np.ndarray[Any, Any]]) -> None:
    """Write the outputs' sizes back into the folded file: converters ask for them."""
    model = onnx.load(str(path))
    for item, array in zip(model.graph.output, outputs, strict=True):
        kind = item.type.tensor_type.elem_type
        item.CopyFrom(onnx.helper.make_tensor_value_info(item.name, kind, array.shape))
    onnx.save(model, str(path))


def made_up(session: Any) -> list[np.ndarray[Any, Any]]:
    """Inputs for a session of fixed sizes: normal numbers, and 0 or 1 for whole ones, which words, kinds and masks can be."""
    kinds = {"float": "float32", "double": "float64", "float16": "float16"}
    draw, arrays = np.random.default_rng(SEED), []
    for item in session.get_inputs():
        name = item.type.removeprefix("tensor(").removesuffix(")")
        kind = np.dtype(kinds.get(name, name))
        values = draw.standard_normal(item.shape) if kind.kind == "f" else draw.integers(0, 2, item.shape)
        # A mask that hides everything of one text makes outputs of nothing: the first entry is always seen.
        if kind.kind != "f" and values.ndim:
            values[..., 0] = 1
        arrays.append(np.asarray(values).astype(kind))
    return arrays


def _none(fixed: Path, folder: Path, signature: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - one form for all
    """For runtimes that read ONNX files: only what is expected of them."""
    return {"version": library_version("onnx")}


def _mnn(fixed: Path, folder: Path, signature: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    # Not the command `mnnconvert`: it installs a package and sends the model's digest and size to its makers.
    import _tools
    import MNN  # noqa: F401 - it brings what the tools need

    model = onnx.load(str(fixed))
    if known_forms.nan_tests_as_comparisons(model):
        onnx.save(model, str(fixed))
    out = folder / "model.mnn"
    with _printed() as said:
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", str(fixed), "--MNNModel", str(out), "--bizCode", "hwprune"])
    text = said[0]
    if not out.is_file() or not out.stat().st_size:
        refused = _nodes(fixed, _mnn_refused(text))
        if refused:
            raise ConversionError(
                f"MNN has no operator {refused[0]['operator']} (node {refused[0]['name'] or 'unnamed'})", refused
            )
        raise ConversionError(_last(text))
    return {"version": library_version("MNN")}


def _mnn_refused(text: str) -> list[str]:
    """Operators of a line such as ``These Op Not Support: ONNX::IsNaN ONNX::Foo``."""
    lines = [line for line in text.splitlines() if "Not Support" in line]
    return list(dict.fromkeys(name for line in lines for name in re.findall(r"ONNX::(\w+)", line)))


def _ncnn(fixed: Path, folder: Path, signature: Mapping[str, Any]) -> dict[str, Any]:
    import ncnn
    import pnnx

    model = onnx.load(str(fixed))
    if known_forms.strided_slices_as_pools(model):
        onnx.save(model, str(fixed))
    sizes = ",".join(f"[{','.join(map(str, shape))}]{_PNNX_TYPES.get(kind, 'f32')}" for _, kind, shape in signature["inputs"])
    done = subprocess.run(
        [pnnx.EXEC_PATH, str(fixed), f"inputshape={sizes}", "fp16=0"],
        capture_output=True, text=True, check=False, cwd=fixed.parent, preexec_fn=_die_with_parent,
    )  # fmt: skip
    param, weights = fixed.with_name("model.ncnn.param"), fixed.with_name("model.ncnn.bin")
    text = done.stdout + done.stderr
    if not param.is_file() or not weights.is_file():
        raise ConversionError(_last(text) or f"pnnx ended with exit code {done.returncode}")
    layers = [line.split()[:2] for line in param.read_text().splitlines()[2:]]
    unknown = dict.fromkeys(kind for kind, _ in layers if ncnn.layer_to_index(kind) < 0)
    if unknown:
        refused = _nodes(fixed, unknown)
        raise ConversionError(f"ncnn has no layer {refused[0]['operator']} (node {refused[0]['name'] or 'unnamed'})", refused)
    for path in (param, weights):
        (folder / path.name).write_bytes(path.read_bytes())
    return {"version": f"{library_version('ncnn')}, {library_version('pnnx')}"}


def _nodes(fixed: Path, operators: Iterable[str]) -> list[dict[str, str]]:
    """The model's nodes of these operators; an operator that pnnx made itself has no node."""
    model = onnx.load(str(fixed), load_external_data=False)
    found = [{"operator": kind, "name": node.name} for kind in operators for node in model.graph.node if node.op_type == kind]
    named = {one["operator"] for one in found}
    return found + [{"operator": kind, "name": ""} for kind in operators if kind not in named]


_PNNX_TYPES = {"float32": "f32", "float64": "f64", "float16": "f16", "int64": "i64", "int32": "i32", "bool": "u8", "uint8": "u8"}


def _module(fixed: Path, signature: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """The model as a PyTorch module, and inputs of its sizes."""
    import torch

    example = tuple(
        torch.zeros(shape, dtype=getattr(torch, kind)) if shape else torch.tensor(0, dtype=getattr(torch, kind))
        for _, kind, shape in signature["inputs"]
    )
    module = import_module(onnx.load(str(fixed)), example)
    if module.kept_nodes:
        refused = _nodes(fixed, dict.fromkeys(module.kept_nodes))
        raise ConversionError(
            f"PyTorch has no operator {refused[0]['operator']} (node {refused[0]['name'] or 'unnamed'}), "
            "and this converter reads PyTorch's",
            refused,
        )
    return module, example


def _litert(fixed: Path, folder: Path, signature: Mapping[str, Any]) -> dict[str, Any]:
    import litert_torch

    module, example = _module(fixed, signature)
    litert_torch.convert(module, example).export(str(folder / "model.tflite"))
    return {"version": library_version("litert-torch")}


def _executorch(fixed: Path, folder: Path, signature: Mapping[str, Any]) -> dict[str, Any]:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    module, example = _module(fixed, signature)
    lowered = to_edge_transform_and_lower(torch.export.export(module, example), partitioner=[XnnpackPartitioner()])
    calls = [node for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
    slow = [str(node.target) for node in calls if "delegate" not in str(node.target) and "getitem" not in str(node.target)]
    (folder / "model.pte").write_bytes(lowered.to_executorch().buffer)
    return {"version": library_version("executorch"), "portable": {name: slow.count(name) for name in sorted(set(slow))}}


CONVERTERS: Mapping[str, Callable[[Path, Path, Mapping[str, Any]], dict[str, Any]]] = {
    "onnx": _none, "mnn": _mnn, "ncnn": _ncnn, "litert": _litert, "executorch": _executorch,
}  # fmt: skip
"""Kind -> what writes its files into a folder and says more of them."""


def _last(text: str) -> str:
    """The line of a converter's output that says most: the last one that speaks of an error, else the last."""
    lines = [line.strip() for line in text.splitlines()[-DEPTH:] if line.strip()]
    bad = [line for line in lines if re.search(r"error|fail|not support|unsupport|unknown", line, re.IGNORECASE)]
    return (bad or lines or [""])[-1]


@contextlib.contextmanager
def _printed() -> Iterator[list[str]]:
    """What is printed meanwhile, also by libraries that write past Python; the list holds it afterwards."""
    said: list[str] = []
    with tempfile.TemporaryFile() as stream:
        before = [os.dup(1), os.dup(2)]
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
        try:
            yield said
        finally:
            sys.stdout.flush()
            for number, kept in zip((1, 2), before, strict=True):
                os.dup2(kept, number)
                os.close(kept)
            stream.seek(0)
            said.append(stream.read().decode(errors="replace"))


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere end of input ends the process
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main(parent: int = 0) -> None:
    """Answer until the input ends.

    Args:
        parent: the process that asks; 0: not said. (A program between the two is told apart by the end of input alone.)
    """
    _die_with_parent()
    if parent and os.getppid() == 1 != parent:
        return  # it was gone before the line above
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
