"""What runtimes share whose models have fixed sizes, and those that run a format of their own."""

from __future__ import annotations

import abc
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.runtimes import conversion
from hwprune.runtimes.base import Arrays, Runner, Runtime, RuntimeSettings
from hwprune.runtimes.conversion import Converted, Signature


class FixedSizeRunner(Runner):
    """A model that runs inputs of one shape. Batches of other sizes are run in parts of that size, the last one filled up."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature

    @abc.abstractmethod
    def _infer(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Outputs, in the model's order, for inputs of the model's own shapes and types. They are the caller's own."""

    @abc.abstractmethod
    def _bound(self, arrays: Sequence[np.ndarray[Any, Any]]) -> Callable[[], object]:
        """A call without arguments that runs once on them."""

    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        arrays = self._fitting(inputs)
        if self._as_they_are(arrays):
            return self._infer(arrays)
        size, count = self._signature.inputs[0][2][0], len(arrays[0])
        parts = []
        for start in range(0, count, size):
            part = [array[start : start + size] for array in arrays]
            short = size - len(part[0])
            filled = [np.concatenate([x, np.repeat(x[-1:], short, axis=0)]) if short else x for x in part]
            outputs = self._infer(filled)
            if any(x.ndim == 0 or len(x) != size for x in outputs):
                raise ValueError(f"an output has no batch dimension: only batches of {size} can be run")
            parts.append([x[: size - short] for x in outputs])
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def bind(self, inputs: Arrays) -> Callable[[], object]:
        arrays = self._fitting(inputs)
        if self._as_they_are(arrays):
            call = self._bound(arrays)
            call()
            return call
        size, count = self._signature.inputs[0][2][0], len(arrays[0])
        if count % size:
            raise ValueError(f"batches of {count} are no multiple of {size}, for which the model was made")
        calls = [self._bound([array[start : start + size] for array in arrays]) for start in range(0, count, size)]
        for call in calls:
            call()
        return calls[0] if len(calls) == 1 else lambda: [call() for call in calls]

    def _as_they_are(self, arrays: Sequence[np.ndarray[Any, Any]]) -> bool:
        return all(array.shape == shape for array, (_, _, shape) in zip(arrays, self._signature.inputs, strict=True))

    def _fitting(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        """The inputs in the model's types, contiguous. Raises ValueError: too few, or of shapes that can't be run in parts."""
        wanted = self._signature.inputs
        if len(inputs) < len(wanted):
            raise ValueError(f"the model takes {len(wanted)} inputs {[name for name, _, _ in wanted]}, got {len(inputs)}")
        arrays = [
            np.ascontiguousarray(array, dtype=kind).reshape(array.shape)  # NumPy makes (1,) of a single number
            for array, (_, kind, _) in zip(inputs, wanted, strict=False)
        ]
        if self._as_they_are(arrays):
            return arrays
        for array, (name, _, shape) in zip(arrays, wanted, strict=True):
            if not shape or array.ndim != len(shape) or array.shape[1:] != shape[1:] or not len(array):
                raise ValueError(f"input {name} has shape {list(shape)}, got {list(array.shape)}")
        if len({len(array) for array in arrays}) != 1 or len({shape[0] for _, _, shape in wanted}) != 1:
            raise ValueError("inputs of different batch sizes can't be run in parts")
        return arrays


class ConvertedRuntime(Runtime, abc.ABC):
    """A runtime with a format of its own, made from ``model.onnx`` by a converter.

    Attributes:
        kind: of the converter; also the end of the folder's name that holds what it makes.
        files: what it makes, as it is handed over.
    """

    kind: str
    files: tuple[str, ...] = ()
    options: frozenset[str] | None = frozenset()

    @abc.abstractmethod
    def open(self, source: Path, made: Converted, settings: RuntimeSettings) -> Runner:
        """Load the converted files; ``source`` is the ONNX file, which some run as it is."""

    def sizes(self, shapes: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        """The shapes for which a model is converted, where those of the inputs are these."""
        return shapes

    def convert(self, path: Path, shapes: tuple[tuple[int, ...], ...]) -> Converted:
        """The converted files of an ONNX file. Raises `ConversionError`."""
        return conversion.convert(self.kind, path, self.sizes(shapes), self.convert_s)

    def load(self, path: Path, settings: RuntimeSettings) -> Runner:
        made = self.convert(path, settings.shapes)
        runner = self.open(path, made, settings)
        # Another runtime, version or number of threads computes by other kernels: each is checked for itself.
        mark = f"{self.name} {self.version()} {settings.threads} {settings.precision} {sorted(settings.options.items())}"
        checked = made.folder / f"checked-{hashlib.sha256(mark.encode()).hexdigest()[:12]}"
        if not checked.exists():
            inputs, _ = conversion.expected(made)
            conversion.check(made, runner.run(inputs), f"what the {self.kind} converter made" if self.files else self.name)
            with contextlib.suppress(OSError):  # it only saves time
                checked.touch()
        return runner

    @property
    def convert_s(self) -> float:
        return conversion.LIMIT_S
