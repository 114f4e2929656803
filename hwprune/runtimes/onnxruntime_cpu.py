"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import Arrays, Runner, Runtime


@final
class OnnxRuntimeRunner(Runner):
    """A session with a fixed number of threads that don't spin."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [node.name for node in session.get_inputs()]

    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        return list(self._session.run(None, self._feed(inputs)))

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        feed, run = self._feed(inputs), self._session.run
        return lambda: run(None, feed)

    def _feed(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        if len(inputs) < len(self._names):
            raise ValueError(f"the model takes {len(self._names)} inputs {self._names}, got {len(inputs)}")
        return dict(zip(self._names, inputs, strict=False))  # the exporter drops inputs that the model ignores


@final
class OnnxRuntimeCpu(Runtime):
    name = "onnxruntime-cpu"
    description = "ONNX Runtime, CPU execution provider"

    def missing(self) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: pip install 'hwprune[cpu]'"
        return None

    def version(self) -> str:
        for package in ("onnxruntime", "onnxruntime-gpu"):
            try:
                return f"{package} {importlib.metadata.version(package)}"
            except importlib.metadata.PackageNotFoundError:
                continue
        return "unknown"

    def load(self, path: Path, threads: int, options: Mapping[str, Any]) -> Runner:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.log_severity_level = 3
        # Threads that spin steal time from each other on a shared machine and hide in nobody's numbers.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in options.items():
            settings.add_session_config_entry(key, str(value))
        return OnnxRuntimeRunner(onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"]))
