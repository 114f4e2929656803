"""NVIDIA's TensorRT for RTX, ahead of time: its parser and builder run on a CPU and build engines for GPUs that are elsewhere.

They tell whether a model builds, and which operators don't. An engine can't be loaded or timed without its GPU, so nothing here
is a latency. A process of its own builds: ``python -m hwprune.runtimes.tensorrt_rtx`` reads one request and writes one answer,
JSON lines both.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hwprune.errors import described
from hwprune.runtimes.base import RuntimeSettings, library_version, not_installed
from hwprune.runtimes.tensorrt import RefusedError, build, make_logger
from hwprune.runtimes.tensorrt_sparsity import SparsityLog

LIBRARY = "tensorrt_rtx_bindings"
LIMIT_S = 600.0
LEVEL = re.compile(r"SM(\d+)$")


@dataclass(frozen=True, slots=True)
class Built:
    """What the builder says of a model.

    Attributes:
        builds: there is an engine.
        seconds: that parsing and building took here.
        engine_bytes: its size; 0 without one.
        refused: ``name``, ``operator`` and ``reason`` of the nodes that the parser refuses.
        reason: why there is no engine; empty with one.
    """

    builds: bool
    seconds: float = 0.0
    engine_bytes: int = 0
    refused: Sequence[dict[str, str]] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def missing() -> str | None:
    """Why nothing can be built here, or None."""
    return not_installed(LIBRARY, "tensorrt-rtx")


def version() -> str:
    """For records."""
    return library_version("tensorrt_rtx_cu13_bindings")


def capabilities() -> list[int]:
    """Compute capabilities that it builds for: 89 is 8.9."""
    names = vars(import_module(LIBRARY).ComputeCapability)
    return sorted(int(found[1]) for name in names if (found := LEVEL.match(name)))


def build_ahead(
    path: Path, capability: int, shapes: Sequence[Sequence[int]], out: Path | None = None, limit_s: float = LIMIT_S
) -> Built:
    """Build a model in a process of its own.

    Args:
        path: an ONNX file; its types are the precision.
        capability: see `capabilities`.
        shapes: of its inputs, in their order; what is left out keeps its sizes, free ones as 1.
        out: where the engine goes; None: nowhere.
        limit_s: seconds after which it is ended.
    """
    asked = {"path": str(path), "capability": capability, "shapes": [list(shape) for shape in shapes], "out": out and str(out)}
    command = [sys.executable, "-P", "-m", "hwprune.runtimes.tensorrt_rtx"]
    try:
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Built(builds=False, seconds=limit_s, reason=f"the builder was ended after {limit_s:g} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Built(builds=False, reason=f"the builder died (exit code {done.returncode}): {last}")
    return Built(**json.loads(lines[-1]))


def _built(asked: dict[str, Any]) -> Built:
    trt, log = import_module(LIBRARY), SparsityLog()

    def configure(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{asked['capability']}"), 0)

    settings = RuntimeSettings(shapes=tuple(tuple(shape) for shape in asked["shapes"]))
    started = time.monotonic()
    try:
        plan = build(trt, Path(asked["path"]), settings, make_logger(trt, log), log, configure)
    except RefusedError as error:
        return Built(builds=False, seconds=time.monotonic() - started, refused=error.nodes, reason=str(error))
    except Exception as error:  # the bindings raise what they meet
        return Built(builds=False, seconds=time.monotonic() - started, reason=described(error))
    if asked["out"]:
        Path(asked["out"]).write_bytes(memoryview(plan))
    return Built(builds=True, seconds=time.monotonic() - started, engine_bytes=int(plan.nbytes))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_built(json.loads(sys.stdin.read())).to_json()) + "\n")
