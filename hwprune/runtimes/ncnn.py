"""ncnn, Tencent's runtime for phones, on the CPU; pnnx converts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import Runner, RuntimeSettings, library_version, not_installed
from hwprune.runtimes.conversion import Converted
from hwprune.runtimes.fixed_sizes import ConvertedRuntime, FixedSizeRunner


@final
class NcnnRunner(FixedSizeRunner):
    """A net in 32 bits. pnnx takes the first dim for the batch and leaves it out, so examples run one after another."""

    def __init__(self, made: Converted, settings: RuntimeSettings) -> None:
        import ncnn

        super().__init__(made.signature)
        self._ncnn = ncnn
        self._net = ncnn.Net()
        self._net.opt.num_threads = settings.threads
        self._net.opt.use_vulkan_compute = False
        for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(self._net.opt, name, False)
        if self._net.load_param(str(made.folder / "model.ncnn.param")) or self._net.load_model(
            str(made.folder / "model.ncnn.bin")
        ):
            raise ValueError("ncnn can't load what pnnx made")
        self._names = [f"in{place}" for place in range(len(made.signature.inputs))]
        if missing := set(self._names) - set(self._net.input_names()):
            raise ValueError(f"the converted model has no input {sorted(missing)[0]}, but {', '.join(self._net.input_names())}")
        self._outs = [f"out{place}" for place in range(len(made.signature.outputs))]

    def _infer(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        mats = self._bound(arrays)()
        assert isinstance(mats, list)
        outputs = []
        for mat, (name, kind, shape) in zip(mats, self._signature.outputs, strict=True):
            values = np.array(mat)
            if values.size != math.prod(shape):
                raise ValueError(f"what pnnx made gives {list(values.shape)} for output {name}, which has {list(shape)}")
            outputs.append(values.reshape(shape).astype(kind))
        return outputs

    def _bound(self, arrays: Sequence[np.ndarray[Any, Any]]) -> Callable[[], object]:
        # Clones: a layer that works in place would write into the caller's array, which may be read-only; of memory that ncnn
        # counts references to it makes its own copy first.
        mats = [self._ncnn.Mat(_without_batch(array)).clone() for array in arrays]
        net, names, outs = self._net, self._names, self._outs

        def call() -> list[Any]:
            extractor = net.create_extractor()
            for name, mat in zip(names, mats, strict=True):
                extractor.input(name, mat)
            results = []
            for name in outs:
                code, out = extractor.extract(name)
                if code:
                    raise RuntimeError(f"ncnn stopped with code {code} at {name}")
                results.append(out)
            return results

        return call


def _without_batch(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What ncnn takes: no batch, whole numbers 32 bits wide."""
    values = array[0] if array.ndim > 1 and array.shape[0] == 1 else array
    return np.ascontiguousarray(values, np.float32 if values.dtype.kind == "f" else np.int32)


@final
class Ncnn(ConvertedRuntime):
    """fp32: pnnx would store 16 bits by default, and ncnn compute in them."""

    name = "ncnn"
    description = "ncnn on the CPU, converted by pnnx"
    kind = "ncnn"
    files = ("model.ncnn.param", "model.ncnn.bin")

    def missing(self) -> str | None:
        return not_installed("ncnn", "ncnn") or not_installed("pnnx", "ncnn") or not_installed("onnxruntime", "cpu")

    def version(self) -> str:
        return library_version("ncnn")

    def prepare(self) -> None:
        import ncnn

        ncnn.Net()

    def sizes(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        return tuple((1, *shape[1:]) if shape else shape for shape in shapes)

    def open(self, source: Path, made: Converted, settings: RuntimeSettings) -> Runner:
        return NcnnRunner(made, settings)
