"""Runtimes: a model file -> a runner. One file each, one table.

Begin with `base`; a new runtime is one file and one row in the table below.
"""

from __future__ import annotations

from hwprune.common import plugins
from hwprune.errors import UnknownNameError
from hwprune.runtimes.base import CUDA_EVENT, PROCESS, THREAD_CPU, WALL, Arrays, Operator, Runner, Runtime, RuntimeSettings
from hwprune.runtimes.executorch import ExecuTorch
from hwprune.runtimes.litert import LiteRt
from hwprune.runtimes.llama_cpp import LlamaCpp
from hwprune.runtimes.mnn import Mnn
from hwprune.runtimes.ncnn import Ncnn
from hwprune.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from hwprune.runtimes.onnxruntime_cuda import OnnxRuntimeCuda
from hwprune.runtimes.onnxruntime_ep import OnnxRuntimeEp
from hwprune.runtimes.onnxruntime_tensorrt import OnnxRuntimeTensorRT
from hwprune.runtimes.onnxruntime_web import OnnxRuntimeWeb
from hwprune.runtimes.openvino import OpenVino
from hwprune.runtimes.pytorch import PyTorchCpu, PyTorchCuda
from hwprune.runtimes.tensorrt import TensorRt
from hwprune.runtimes.tract import Tract

Settings = RuntimeSettings
"""The name of earlier versions, which plug-ins may use."""
RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        OnnxRuntimeCpu(), OpenVino(), PyTorchCpu(), OnnxRuntimeCuda(), OnnxRuntimeTensorRT(), OnnxRuntimeEp(),
        TensorRt(), PyTorchCuda(),
        LlamaCpp(), LiteRt(), Ncnn(), Mnn(), ExecuTorch(), OnnxRuntimeWeb(), Tract(),
    )
}  # fmt: skip


def get(name: str) -> Runtime:
    """The runtime of that name, hwprune's own or one of another package's. Raises `UnknownNameError`, `UsageError`."""
    if name in RUNTIMES:
        return RUNTIMES[name]
    others = plugins.found("hwprune.runtimes", Runtime)
    if name not in others:
        raise UnknownNameError("runtime", name, [*RUNTIMES, *others])
    runtime: Runtime = others[name]
    return runtime


def missing(name: str) -> str | None:
    """Why the runtime can't be used on this machine, or None."""
    return get(name).missing()


__all__ = [
    "CUDA_EVENT", "PROCESS", "RUNTIMES", "THREAD_CPU", "WALL", "Arrays", "Operator", "Runner", "Runtime", "RuntimeSettings",
    "Settings", "get", "missing",
]  # fmt: skip
