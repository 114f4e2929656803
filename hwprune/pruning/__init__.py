"""From a recipe to a candidate: cut, mask what is left, compensate; and the proof that the cut is right.

It uses the structure of the model, methods, compensation and calibration data.

Begin with `pruner`; `unit_options` says where the pruned weights come from, `cut_check` holds the proof.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"Candidate": "candidate", "Pruner": "pruner", "prune": "pruner", "uniform_recipe": "uniform"}
"""Names that were imported from here when this package was one module; they are loaded when they are asked for."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
