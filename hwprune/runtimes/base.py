"""What a runtime is. Runtimes import no torch: they run in a small process of their own."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Sequence[np.ndarray[Any, Any]]


class Runner(abc.ABC):
    """A loaded model."""

    @abc.abstractmethod
    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        """All outputs for one batch, in the model's order."""

    @abc.abstractmethod
    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """A call without arguments that runs once on these inputs: what is timed."""


class Runtime(abc.ABC):
    """Loads ONNX files."""

    name: str
    description: str

    @abc.abstractmethod
    def missing(self) -> str | None:
        """Why it can't be used on this machine and what brings it, or None."""

    @abc.abstractmethod
    def version(self) -> str:
        """Version of the library."""

    @abc.abstractmethod
    def load(self, path: Path, threads: int, options: Mapping[str, Any]) -> Runner:
        """Load a model file. Raises whatever the library raises."""
