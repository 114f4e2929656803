"""Export for TensorRT: the ONNX file with a build script, and the engine where it can be built."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import onnx

from hwprune import runtimes
from hwprune.deploy.onnx_format import write_onnx_point
from hwprune.deploy.point import ExportedPoint
from hwprune.errors import CandidateFailure
from hwprune.runtimes.base import RuntimeSettings

BUILD = """#!/bin/sh
# Builds the TensorRT engine on the device that will run it; written by hwprune.
# Engines fit the device and the TensorRT version that built them, so this is run on the target, once.
set -eu
cd "$(dirname "$0")"
exec trtexec --onnx=model.onnx --saveEngine=model.plan --timingCacheFile=timing.cache \\
    {flags}"$@"
"""


def write_tensorrt(point: ExportedPoint) -> list[str]:
    """The ONNX file with the script that builds the engine; the engine itself where TensorRT and the device are there."""
    done = write_onnx_point(point)
    shapes = point.record.data["workload"]["example_shapes"]
    inputs = onnx.load(str(point.out / "model.onnx"), load_external_data=False).graph.input
    given = _shapes(inputs, shapes)
    patterns_ = {choice["pattern"] for choice in point.record.trial(point.number)["recipe"]["choices"]}
    # One shape: tactics are chosen for what will run. Precision comes from the file: from TensorRT 11 on networks are strongly
    # typed.
    # Names are the user's model's own: they must reach trtexec as they are, and never the shell.
    flags = "".join(f"{shlex.quote(f'--{which}Shapes={given}')} " for which in ("min", "opt", "max")) if given else ""
    flags += "--sparsity=enable " if any(":" in pattern and pattern[0].isdigit() for pattern in patterns_) else ""
    script = point.out / "build.sh"
    script.write_text(BUILD.format(flags=flags), encoding="utf-8")
    script.chmod(0o755)
    done.append(script.name)
    return done + _engine(point, [tuple(shape) for shape in shapes])


def _shapes(inputs: Any, shapes: Sequence[Sequence[int]]) -> str:
    """``name:1x3x8x8,...`` of the inputs with a free dim; trtexec takes no shapes of others. Raises `CandidateFailure`."""
    texts = []
    for item, shape in zip(inputs, shapes, strict=False):
        if not shape or all(dim.dim_value > 0 for dim in item.type.tensor_type.shape.dim):
            continue
        if set(item.name) & set(":,"):
            raise CandidateFailure("export", f"trtexec can't be told the shape of input {item.name!r}: its name holds ':' or ','")
        texts.append(f"{item.name}:{'x'.join(str(int(size)) for size in shape)}")
    return ",".join(texts)


def _engine(point: ExportedPoint, shapes: list[tuple[int, ...]]) -> list[str]:
    """Build it here, if this is the place; the timing cache goes along, so that the next build chooses the same tactics."""
    if runtimes.get("tensorrt").missing() is not None:
        return []
    runtimes.get("tensorrt").load(point.out / "model.onnx", RuntimeSettings(shapes=tuple(shapes), cache=str(point.out)))
    return sorted(path.name for path in point.out.iterdir() if path.suffix in (".plan", ".cache", ".engine"))
