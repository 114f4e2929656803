"""What a runtime is. All run in a small process: torch is imported only where a runtime is torch or needs its buffers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Sequence[np.ndarray[Any, Any]]

WALL, THREAD_CPU, CUDA_EVENT, PROCESS = "wall", "thread_cpu", "cuda_event", "process"
"""Clocks: monotonic time of the machine; CPU time of the calling thread; time between two events in the GPU's stream; the clock
of the runtime's own process."""
OWN_TIMERS = (CUDA_EVENT, PROCESS)
"""Clocks that a runner reads itself (`Runner.timer`)."""


@dataclass(frozen=True, slots=True)
class RuntimeSettings:
    """The way in which a model is loaded.

    Attributes:
        threads: intra-op threads of a CPU runtime.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        options: the runtime's own, from the profile.
        shapes: of the inputs that will be timed; runtimes that compile for shapes do so for these.
        cache: folder for what survives a process (timing caches, engines), or None.
    """

    threads: int = 1
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ()
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a loaded model as the runtime's own profiler sees it; ``seconds`` is the median of a run."""

    name: str
    kind: str
    seconds: float
    kernel: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Runner(abc.ABC):
    """A loaded model. Inputs are in the model's order; too many are ignored (exporters drop what the model doesn't read)."""

    @abc.abstractmethod
    def run(self, inputs: Arrays) -> list[np.ndarray[Any, Any]]:
        """All outputs for one batch, in the model's order. Raises ValueError for too few inputs, else what the library raises."""

    @abc.abstractmethod
    def bind(self, inputs: Arrays) -> Callable[[], object]:
        """A call without arguments that runs once on these inputs and returns when the result is there: what is timed."""

    def timer(self, inputs: Arrays) -> Callable[[int], float] | None:
        """Runs n times and returns the device's own seconds for all, or None where only the host's clocks exist."""
        return None

    def profile(self, inputs: Arrays, runs: int) -> list[Operator]:
        """Operators in execution order with their times; empty if the runtime can't tell."""
        return []

    def facts(self) -> dict[str, Any]:
        """What the runtime made of the model (provider, kernels, sparse or not); JSON values."""
        return {}


class Runtime(abc.ABC):
    """Loads model files.

    Attributes:
        device: ``cpu`` or ``cuda``.
        file: name of the file that it runs in a candidate's folder; the suffix is the format.
        precisions: what a profile may ask for.
        in_process: it runs in the process that loads it, whose memory is then the model's.
    """

    name: str
    description: str
    device: str = "cpu"
    file: str = "model.onnx"
    precisions: tuple[str, ...] = ("fp32",)
    in_process: bool = True
    options: frozenset[str] | None = None
    """What may stand under ``[options]`` of a profile; None: whatever the library takes."""

    @abc.abstractmethod
    def missing(self) -> str | None:
        """Why it can't be used on this machine and what brings it, or None."""

    @abc.abstractmethod
    def version(self) -> str:
        """Version of the library."""

    @abc.abstractmethod
    def load(self, path: Path, settings: RuntimeSettings) -> Runner:
        """Load a model file. Raises whatever the library raises, and never falls back to another device."""

    def prepare(self) -> None:  # noqa: B027 - optional
        """Load the library itself, so that memory measured later is the model's."""

    def clock(self, settings: RuntimeSettings) -> str:
        """The clock that ranks: CPU time where all work happens in the calling thread, else wall time or the GPU's events."""
        return THREAD_CPU if self.device == "cpu" and settings.threads == 1 else WALL

    @property
    def convert_s(self) -> float:
        """Seconds that `convert` may take; 0: it reads the file as it is."""
        return 0.0

    def convert(self, path: Path, shapes: tuple[tuple[int, ...], ...]) -> object:  # noqa: B027 - optional
        """Make the files that `load` reads, where the runtime has a format of its own; they are kept beside the file.

        Raises:
            RuntimeError: the runtime's converter refuses the model, or makes something else of it.
        """

    def precision_of_file(self, precision: str) -> str:
        """The precision that the model file must have; runtimes that convert by themselves take fp32."""
        return "fp32"


def named(names: Sequence[str], inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs by name. Raises ValueError if there are too few."""
    if len(inputs) < len(names):
        raise ValueError(f"the model takes {len(names)} inputs {list(names)}, got {len(inputs)}")
    return dict(zip(names, inputs, strict=False))


def library_version(*packages: str) -> str:
    """``package version`` of the first that is installed."""
    import importlib.metadata

    for package in packages:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def not_installed(module: str, extra: str) -> str | None:
    """Why a module can't be imported, without importing it."""
    import importlib.util

    return None if importlib.util.find_spec(module) else f"{module} is not installed: pip install 'hwprune[{extra}]'"
