"""ONNX Runtime on the CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, final

from hwprune.runtimes import onnxruntime_session as session
from hwprune.runtimes.base import Runner, Runtime, RuntimeSettings, not_installed


@final
class OnnxRuntimeCpu(Runtime):
    """Options of a profile are session configuration entries."""

    name = "onnxruntime-cpu"
    description = "ONNX Runtime, CPU execution provider"
    precisions = ("fp32", "int8")

    def missing(self) -> str | None:
        return not_installed("onnxruntime", "cpu")

    def version(self) -> str:
        return session.version()

    def prepare(self) -> None:
        session.prepare("CPUExecutionProvider")

    def load(self, path: Path, settings: RuntimeSettings) -> Runner:
        return session.OnnxRuntimeRunner(path, partial(_options, settings), "CPUExecutionProvider", {}, "cpu")


def _options(settings: RuntimeSettings) -> Any:
    session_options = session.options(settings)
    for key, value in settings.options.items():
        session_options.add_session_config_entry(key, session.text(value))
    return session_options
