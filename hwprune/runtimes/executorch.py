"""ExecuTorch with XNNPACK on the CPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from hwprune.runtimes.base import Runner, RuntimeSettings, library_version, not_installed
from hwprune.runtimes.conversion import Converted
from hwprune.runtimes.fixed_sizes import ConvertedRuntime, FixedSizeRunner


@final
class ExecuTorchRunner(FixedSizeRunner):
    """A loaded program. Its thread pool is the process's, and knows nothing of PyTorch's number of threads."""

    def __init__(self, made: Converted, settings: RuntimeSettings) -> None:
        library = _library()
        super().__init__(made.signature)
        library._unsafe_reset_threadpool(settings.threads)
        self._module = library._load_for_executorch(str(made.folder / "model.pte"))
        self._portable = dict(made.facts.get("portable", {}))

    def _infer(self, arrays: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        outputs: Any = self._bound(arrays)()
        return [np.array(x.numpy(), dtype=kind) for x, (_, kind, _) in zip(outputs, self._signature.outputs, strict=True)]

    def _bound(self, arrays: Sequence[np.ndarray[Any, Any]]) -> Callable[[], object]:
        import torch

        tensors, forward = [torch.from_numpy(np.array(array)) for array in arrays], self._module.forward
        return lambda: forward(tensors)

    def facts(self) -> dict[str, Any]:
        """``portable``: operators that XNNPACK does not take, with how often they occur; plain loops compute them."""
        return {"portable": self._portable}


@final
class ExecuTorch(ConvertedRuntime):
    """fp32 by XNNPACK."""

    name = "executorch"
    description = "ExecuTorch (XNNPACK) on the CPU"
    kind = "executorch"
    files = ("model.pte",)

    def missing(self) -> str | None:
        return not_installed("executorch", "executorch") or not_installed("onnxruntime", "cpu")

    def version(self) -> str:
        return library_version("executorch")

    def prepare(self) -> None:
        _library()

    def open(self, source: Path, made: Converted, settings: RuntimeSettings) -> Runner:
        return ExecuTorchRunner(made, settings)


def _library() -> Any:
    """The bindings. They print how they read /proc/cpuinfo while they are loaded."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:  # noqa: PTH123
        warnings.simplefilter("ignore")
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            from executorch.extension.pybindings import portable_lib
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return portable_lib
