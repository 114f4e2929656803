"""ONNX Runtime on an NVIDIA GPU: the TensorRT execution provider."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import final

from hwprune.runtimes import onnxruntime_session as session
from hwprune.runtimes.base import Runner, Runtime, RuntimeSettings
from hwprune.runtimes.onnxruntime_cuda import without_cpu


@final
class OnnxRuntimeTensorRT(Runtime):
    """Options of a profile are the provider's (``trt_...``). Sparse weights are allowed; TensorRT decides by its own timing."""

    name = "onnxruntime-tensorrt"
    description = "ONNX Runtime, TensorRT execution provider"
    device = "cuda"
    precisions = ("fp32", "fp16", "int8")

    def missing(self) -> str | None:
        return session.missing_provider("TensorrtExecutionProvider")

    def version(self) -> str:
        return session.version()

    def precision_of_file(self, precision: str) -> str:
        return "fp32" if precision == "int8" else precision

    def prepare(self) -> None:
        session.prepare("TensorrtExecutionProvider")

    def load(self, path: Path, settings: RuntimeSettings) -> Runner:
        provider_options = {"trt_sparsity_enable": "1"}
        if settings.cache is not None:
            # One timing cache for all builds: the same layer gets the same tactic, so that candidates differ by their own.
            provider_options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": settings.cache}
        provider_options |= {key: session.text(value) for key, value in settings.options.items()}
        return session.OnnxRuntimeRunner(
            path, partial(without_cpu, settings), "TensorrtExecutionProvider", provider_options, "cuda"
        )
