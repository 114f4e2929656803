"""tract, Sonos' inference in Rust, on the CPU: one thread, ONNX files as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import Arrays, Operator, Runner, RuntimeSettings, library_version, not_installed
from hwprune.runtimes.conversion import Converted
from hwprune.runtimes.fixed_sizes import ConvertedRuntime, FixedSizeRunner

_TYPES = {
    "float32": "f32", "float64": "f64", "float16": "f16", "int64": "i64", "int32": "i32", "int8": "i8", "uint8": "u8",
    "bool": "bool",
}  # fmt: skip


@final
class TractRunner(FixedSizeRunner):
    """An optimised plan for inputs of one shape."""

    def __init__(self, source: Path, made: Converted) -> None:
        import tract

        super().__init__(made.signature)
        self._from_numpy = tract.Tensor.from_numpy
        model = tract.onnx().load(str(source))
        if model.input_count() != len(made.signature.inputs):
            raise ValueError(f"tract reads {model.input_count()} inputs, the model has {len(made.signature.inputs)}")
        for place, (_, kind, shape) in enumerate(made.signature.inputs):
            model.set_input_fact(place, ",".join([*map(str, shape), _TYPES[kind]]))
        self._plan = model.into_model().into_runnable()

    def _infer(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return [np.array(out.to_numpy()) for out in self._plan.run(list(arrays))]

    def _bound(self, arrays: Sequence[np.ndarray[Any, Any]]) -> Callable[[], object]:
        tensors, plan = [self._from_numpy(array) for array in arrays], self._plan
        return lambda: plan.run(tensors)

    def profile(self, inputs: Arrays, runs: int) -> list[Operator]:
        """By tract's own profiler; nodes that take no time are left out."""
        tensors = [self._from_numpy(array) for array in self._fitting(inputs)]
        operators = []
        for node in json.loads(self._plan.profile_json(tensors))["nodes"]:
            seconds = float(node.get("secs_per_iter", 0.0))
            if seconds > 0:
                name = str(node.get("node_name") or node.get("name") or node.get("id"))
                operators.append(Operator(name, str(node.get("op_name", "")), seconds))
        return operators


@final
class Tract(ConvertedRuntime):
    """One thread, whatever the profile asks for."""

    name = "tract"
    description = "tract (Rust) on the CPU, one thread"
    kind = "onnx"

    def missing(self) -> str | None:
        return not_installed("tract", "tract") or not_installed("onnxruntime", "cpu")

    def version(self) -> str:
        return library_version("tract")

    def prepare(self) -> None:
        import tract

        tract.onnx()

    def open(self, source: Path, made: Converted, settings: RuntimeSettings) -> Runner:
        return TractRunner(source, made)
