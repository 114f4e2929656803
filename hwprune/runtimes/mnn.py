"""MNN, Alibaba's runtime for phones, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import Runner, RuntimeSettings, library_version, not_installed
from hwprune.runtimes.conversion import Converted
from hwprune.runtimes.fixed_sizes import ConvertedRuntime, FixedSizeRunner

_HOST_TYPES = {"float32": "Float", "int32": "Int", "int64": "Int", "uint8": "Uint8", "bool": "Int"}
"""Whole numbers are 32 bits wide in MNN."""


@final
class MnnRunner(FixedSizeRunner):
    """A session of fixed sizes. What is timed holds the copy of the inputs into MNN's own layout, as every caller pays it."""

    def __init__(self, made: Converted, settings: RuntimeSettings) -> None:
        import MNN

        super().__init__(made.signature)
        self._mnn = MNN
        self._net = MNN.Interpreter(str(made.folder / "model.mnn"))
        self._session = self._net.createSession({"backend": "CPU", "numThread": settings.threads, "precision": "high"})
        held = self._net.getSessionInputAll(self._session)
        # What nothing reads is no input any more; another that is missing shows in the outputs.
        self._inputs = [held.get(name) for name, _, _ in made.signature.inputs]
        if not any(tensor is not None for tensor in self._inputs):
            raise ValueError(f"the converted model has none of the inputs, but {', '.join(held)}")
        for tensor, (_, _, shape) in zip(self._inputs, made.signature.inputs, strict=True):
            if tensor is not None:
                self._net.resizeTensor(tensor, shape or (1,))
        self._net.resizeSession(self._session)

    def _infer(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        self._bound(arrays)()
        held = self._net.getSessionOutputAll(self._session)
        outputs = []
        for name, kind, shape in self._signature.outputs:
            if name not in held:
                raise ValueError(f"the converted model has no output {name}, but {', '.join(held)}")
            size = held[name].getShape()
            host = self._host(np.zeros(size, np.float32 if kind.startswith("float") else np.int32))
            held[name].copyToHostTensor(host)
            outputs.append(np.array(host.getNumpyData()).reshape(shape).astype(kind))
        return outputs

    def _bound(self, arrays: Sequence[np.ndarray[Any, Any]]) -> Callable[[], object]:
        given = zip(self._inputs, arrays, strict=True)
        pairs = [(tensor, self._host(array)) for tensor, array in given if tensor is not None]
        run, session = self._net.runSession, self._session

        def call() -> None:
            for tensor, host in pairs:
                tensor.copyFrom(host)
            run(session)

        return call

    def _host(self, array: np.ndarray[Any, Any]) -> Any:
        """A tensor of the host's, in the order of NumPy."""
        kind = _HOST_TYPES[array.dtype.name]
        values = np.ascontiguousarray(array, np.int32 if kind == "Int" else array.dtype)
        shape = values.shape or (1,)
        wide = getattr(self._mnn, f"Halide_Type_{kind}")
        return self._mnn.Tensor(shape, wide, values.reshape(shape), self._mnn.Tensor_DimensionType_Caffe)


@final
class Mnn(ConvertedRuntime):
    """``precision: high`` of MNN, which is fp32."""

    name = "mnn"
    description = "MNN on the CPU"
    kind = "mnn"
    files = ("model.mnn",)

    def missing(self) -> str | None:
        return not_installed("MNN", "mnn") or not_installed("onnxruntime", "cpu")

    def version(self) -> str:
        return library_version("MNN")

    def prepare(self) -> None:
        import MNN  # noqa: F401

    def open(self, source: Path, made: Converted, settings: RuntimeSettings) -> Runner:
        return MnnRunner(made, settings)
