"""Runtimes: an ONNX file -> a runner. One file each, one table."""

from __future__ import annotations

from hwprune.errors import UnknownNameError
from hwprune.runtimes.base import Arrays, Runner, Runtime
from hwprune.runtimes.onnxruntime_cpu import OnnxRuntimeCpu

RUNTIMES: dict[str, Runtime] = {"onnxruntime-cpu": OnnxRuntimeCpu()}

PLANNED = {
    "tensorrt": "TensorRT is not supported by this version of hwprune",
    "openvino": "OpenVINO is not supported by this version of hwprune",
}
"""Runtimes that profiles name already; why they can't be used."""


def get(name: str) -> Runtime:
    """The runtime of that name. Raises `UnknownNameError`."""
    if name not in RUNTIMES:
        raise UnknownNameError("runtime", name, RUNTIMES)
    return RUNTIMES[name]


def missing(name: str) -> str | None:
    """Why the runtime can't be used on this machine, or None."""
    if name in PLANNED:
        return PLANNED[name]
    return get(name).missing()


__all__ = ["PLANNED", "RUNTIMES", "Arrays", "Runner", "Runtime", "get", "missing"]
