"""OpenVINO on the CPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import Arrays, Operator, Runner, Runtime, RuntimeSettings, library_version, named, not_installed
from hwprune.runtimes.openvino_states import EXACT_CACHE, StatefulRunner, state_pairs

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


@final
class OpenVinoRunner(Runner):
    """Compiled for the measured shapes; other shapes (a larger batch of evaluation) get a compilation of their own."""

    def __init__(self, model: Any, settings: RuntimeSettings) -> None:
        self._model, self._settings = model, settings
        self._names = [item.get_any_name() for item in model.inputs]
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}
        if settings.shapes:
            self._compile(tuple(settings.shapes[: len(self._names)]))

    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        request, arrays = self._request(inputs)
        result = request.infer(arrays)
        return [np.array(result[index]) for index in range(len(result))]

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        import openvino

        request, arrays = self._request(inputs)
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, openvino.Tensor(array))
        request.infer()
        return request.infer  # type: ignore[no-any-return]

    def profile(self, inputs: Arrays, runs: int) -> list[Operator]:
        request, arrays = self._request(inputs, counting=True)
        times: dict[str, list[float]] = {}
        kinds: dict[str, tuple[str, str]] = {}
        for turn in range(runs + 3):
            request.infer(arrays)
            for info in request.profiling_info if turn >= 3 else ():
                if info.real_time.total_seconds() > 0:
                    times.setdefault(info.node_name, []).append(info.real_time.total_seconds())
                    kinds[info.node_name] = (info.node_type, info.exec_type)
        return [Operator(name, kinds[name][0], statistics.median(values), kinds[name][1]) for name, values in times.items()]

    def facts(self) -> dict[str, Any]:
        compiled = next(iter(self._compiled.values()), None)
        if compiled is None:
            return {}
        runtime_types = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
        kernels: dict[str, int] = {}
        for info in runtime_types:
            kernel = str(info["primitiveType"].astype(str)) if "primitiveType" in info else ""
            if kernel and kernel not in ("undef", "unknown"):
                kernels[kernel] = kernels.get(kernel, 0) + 1
        return {"kernels": kernels}

    def _request(self, inputs: Arrays, *, counting: bool = False) -> tuple[Any, list[np.ndarray[Any, Any]]]:
        arrays = [np.asarray(array, order="C") for array in named(self._names, inputs).values()]
        return self._compile(tuple(array.shape for array in arrays), counting=counting).create_infer_request(), arrays

    def _compile(self, shapes: tuple[tuple[int, ...], ...], *, counting: bool = False) -> Any:
        import openvino

        if not counting and shapes in self._compiled:
            return self._compiled[shapes]
        for item, shape in zip(self._model.inputs, shapes, strict=True):
            if len(item.partial_shape) != len(shape) or not item.partial_shape.compatible(openvino.PartialShape(list(shape))):
                raise ValueError(f"input {item.get_any_name()} has shape {item.partial_shape}, got {list(shape)}")
        model = self._model.clone()
        model.reshape({index: openvino.PartialShape(list(shape)) for index, shape in enumerate(shapes)})
        compiled = openvino.Core().compile_model(model, "CPU", _properties(self._settings, counting=counting))
        if not counting:
            self._compiled[shapes] = compiled
        return compiled


@final
class OpenVino(Runtime):
    """Options of a profile are the CPU plugin's properties; ``CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE`` is for int8 weights.

    ``int8`` runs what the model quantises (Q/DQ nodes); the rest stays in 32 bits. A cache in Optimum's names is a state of the
    model (`openvino_states`).
    """

    name = "openvino"
    description = "OpenVINO, CPU plugin"
    precisions = ("fp32", "bf16", "int8")

    def missing(self) -> str | None:
        return not_installed("openvino", "openvino")

    def version(self) -> str:
        return library_version("openvino")

    def prepare(self) -> None:
        import openvino
        from openvino import opset13

        x = opset13.parameter([1], np.float32)
        openvino.Core().compile_model(openvino.Model([opset13.relu(x)], [x]), "CPU")([np.zeros(1, np.float32)])

    def load(self, path: Path, settings: RuntimeSettings) -> Runner:
        import openvino

        core = openvino.Core()
        model = core.read_model(str(path))
        if pairs := state_pairs(model):
            return StatefulRunner(model, pairs, lambda one: core.compile_model(one, "CPU", EXACT_CACHE | _properties(settings)))
        return OpenVinoRunner(model, settings)


def _properties(settings: RuntimeSettings, *, counting: bool = False) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": settings.threads,
        "INFERENCE_PRECISION_HINT": _HINTS[settings.precision],
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": counting,
        **settings.options,
    }
