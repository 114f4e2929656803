"""ONNX Runtime on an NVIDIA GPU: the CUDA execution provider."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, final

from hwprune.runtimes import onnxruntime_session as session
from hwprune.runtimes.base import Runner, Runtime, RuntimeSettings


@final
class OnnxRuntimeCuda(Runtime):
    """Options of a profile are the provider's (``use_tf32``, ``cudnn_conv_algo_search``, ...).

    Nodes that the provider doesn't know are an error, not a silent detour over the CPU.
    """

    name = "onnxruntime-cuda"
    description = "ONNX Runtime, CUDA execution provider"
    device = "cuda"
    precisions = ("fp32", "fp16")

    def missing(self) -> str | None:
        return session.missing_provider("CUDAExecutionProvider")

    def version(self) -> str:
        return session.version()

    def precision_of_file(self, precision: str) -> str:
        return precision

    def prepare(self) -> None:
        session.prepare("CUDAExecutionProvider")

    def load(self, path: Path, settings: RuntimeSettings) -> Runner:
        provider_options = {key: session.text(value) for key, value in settings.options.items()}
        return session.OnnxRuntimeRunner(path, partial(without_cpu, settings), "CUDAExecutionProvider", provider_options, "cuda")


def without_cpu(settings: RuntimeSettings) -> Any:
    """Session options under which a node left to the CPU is an error."""
    options = session.options(settings)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options
