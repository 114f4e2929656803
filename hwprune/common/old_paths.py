"""Import paths of earlier versions: ``import hwprune.demos`` gives `hwprune.workload.demos`.

Other packages and notebooks import from these paths, so they keep working. A module that moved as a whole is the same object
under both names; one that was divided hands on the names of its parts. Either is loaded when it is asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "hwprune.demos": "hwprune.workload.demos",
    "hwprune.evaluate": "hwprune.workload.scoring",
    "hwprune.files": "hwprune.common.files",
    "hwprune.measurement": "hwprune.records.measurement",
    "hwprune.method": "hwprune.methods.method",
    "hwprune.metrics": "hwprune.workload.metrics",
    "hwprune.recipe": "hwprune.records.recipe",
    "hwprune.record": "hwprune.records.record",
    "hwprune.recovery.gates": "hwprune.recovery.sparsifiers.gates",
    "hwprune.recovery.recovering": "hwprune.recovery.recover",
    "hwprune.searching.knapsack": "hwprune.searching.sampling.knapsack",
    "hwprune.sources": "hwprune.workload.loading",
    "hwprune.statistics": "hwprune.layers.statistics",
    "hwprune.target": "hwprune.records.target",
    "hwprune.trial": "hwprune.records.trial",
}
"""Old path -> where the module is now."""
DIVIDED = {
    "hwprune.export": ("hwprune.onnx_files.to_onnx", "hwprune.onnx_files.recipe_files"),
    "hwprune.searching.pricing": (
        "hwprune.searching.sampling.savings_estimator",
        "hwprune.searching.sampling.savings",
        "hwprune.searching.sampling.couplings",
    ),
}
"""Old path -> the modules among which its names are now."""
RENAMED = {"Prices": "Savings", "Pricing": "SavingsEstimator"}
"""Old name of something in `DIVIDED` -> its name now."""


class _Alias(MetaPathFinder, Loader):
    """Finds the paths of `MOVED` and answers with the module that stands elsewhere now."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        return ModuleSpec(fullname, self, loader_state={}) if fullname in MOVED or fullname in DIVIDED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        if spec.name in DIVIDED:
            return _joined(spec.name)
        module = importlib.import_module(MOVED[spec.name])
        spec.loader_state["spec"] = module.__spec__  # the import system overwrites it
        return module

    def exec_module(self, module: ModuleType) -> None:
        state: dict[str, Any] = module.__spec__.loader_state if module.__spec__ is not None else {}
        if "spec" in state:
            module.__spec__ = state["spec"]


def _joined(name: str) -> ModuleType:
    """A module that looks its names up in the modules of `DIVIDED`."""
    module = ModuleType(name, f"Names that are now in {', '.join(DIVIDED[name])}.")

    def look_up(attribute: str) -> Any:
        wanted = RENAMED.get(attribute, attribute)
        for part in map(importlib.import_module, DIVIDED[name]):
            if hasattr(part, wanted):
                return getattr(part, wanted)
        raise AttributeError(f"module {name!r} has no attribute {attribute!r}")

    module.__getattr__ = look_up  # type: ignore[method-assign]
    return module


def install() -> None:
    """Let the import system know the old paths; a second call changes nothing."""
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.append(_Alias())
