"""LiteRT (TensorFlow Lite) with XNNPACK on the CPU; litert-torch converts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import Runner, RuntimeSettings, library_version, not_installed
from hwprune.runtimes.conversion import Converted
from hwprune.runtimes.fixed_sizes import ConvertedRuntime, FixedSizeRunner


@final
class LiteRtRunner(FixedSizeRunner):
    """An interpreter. What is timed is one invocation: inputs lie in its own memory, as a camera would leave them."""

    def __init__(self, made: Converted, settings: RuntimeSettings) -> None:
        from ai_edge_litert.interpreter import Interpreter

        super().__init__(made.signature)
        self._net = Interpreter(str(made.folder / "model.tflite"), num_threads=settings.threads)
        self._net.allocate_tensors()
        self._inputs = _by_number(self._net.get_input_details())
        self._outputs = [detail["index"] for _, detail in sorted(_by_number(self._net.get_output_details()).items())]

    def _infer(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        self._bound(arrays)()
        return [
            np.array(self._net.get_tensor(index)).reshape(shape).astype(kind)
            for index, (_, kind, shape) in zip(self._outputs, self._signature.outputs, strict=True)
        ]

    def _bound(self, arrays: Sequence[np.ndarray[Any, Any]]) -> Callable[[], object]:
        net, inputs = self._net, self._inputs

        def fill() -> None:
            for number, detail in inputs.items():
                net.set_tensor(detail["index"], arrays[number].astype(detail["dtype"], copy=False))

        fill()
        # Another call may have been bound meanwhile: its inputs have the same shapes, and values don't change the time.
        return net.invoke  # type: ignore[no-any-return]


def _by_number(details: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Places in the model's order: the converter numbers its arguments and results, and leaves out those that nothing reads."""
    numbers = [re.search(r"(?:args|output)_(\d+)", str(detail["name"])) for detail in details]
    if any(found is None for found in numbers):
        return dict(enumerate(details))
    return {int(found[1]): detail for found, detail in zip(numbers, details, strict=True) if found is not None}


@final
class LiteRt(ConvertedRuntime):
    """fp32 by XNNPACK. The converter may live in an environment of its own: ``HWPRUNE_LITERT_PYTHON`` names its Python."""

    name = "litert"
    description = "LiteRT (TensorFlow Lite, XNNPACK) on the CPU"
    kind = "litert"
    files = ("model.tflite",)

    def missing(self) -> str | None:
        elsewhere = "HWPRUNE_LITERT_PYTHON" in os.environ
        return (
            not_installed("ai_edge_litert", "litert")
            or (None if elsewhere else not_installed("litert_torch", "litert"))
            or not_installed("onnxruntime", "cpu")
        )

    def version(self) -> str:
        return library_version("ai-edge-litert")

    def prepare(self) -> None:
        import ai_edge_litert.interpreter  # noqa: F401

    def open(self, source: Path, made: Converted, settings: RuntimeSettings) -> Runner:
        return LiteRtRunner(made, settings)
