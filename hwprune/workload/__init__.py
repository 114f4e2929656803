"""What the user brings: a model, data and how to judge; found by name, checked, and scored.

It uses nothing of the search.

Begin with `workload` (the value), `loading` (from a name to it) and `scoring`.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"Workload": "workload"}
"""Names that were imported from here when this package was one module; they are loaded when they are asked for."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
