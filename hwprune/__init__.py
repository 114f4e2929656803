"""Hardware-aware pruning search: accuracy against measured speedup.

The public names are loaded when they are first used, so that the command line imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hwprune.version import VERSION

if TYPE_CHECKING:
    from hwprune import criteria, patterns
    from hwprune.errors import HwpruneError
    from hwprune.method import Method, Option, solve
    from hwprune.metrics import Metric
    from hwprune.own_class import apply_to_module
    from hwprune.pruning import Candidate, Pruner, prune, uniform_recipe
    from hwprune.recipe import Recipe, UnitChoice
    from hwprune.recovery.recovering import Recovered, prune_gradually, recover
    from hwprune.searching.knapsack import Choice, Item, KnapsackSampler
    from hwprune.searching.loop import join, search
    from hwprune.searching.result import FrontPoint, Result
    from hwprune.statistics import LayerStatistics, Part
    from hwprune.structure.axes import Axis
    from hwprune.structure.graph import AxisGraph
    from hwprune.structure.tracing import trace
    from hwprune.structure.units import Unit
    from hwprune.target import Target
    from hwprune.trial import Trial
    from hwprune.workload import Workload

__version__ = VERSION

_HOMES = {
    "Axis": "structure.axes",
    "AxisGraph": "structure.graph",
    "Candidate": "pruning",
    "Choice": "searching.knapsack",
    "FrontPoint": "searching.result",
    "HwpruneError": "errors",
    "Item": "searching.knapsack",
    "KnapsackSampler": "searching.knapsack",
    "LayerStatistics": "statistics",
    "Method": "method",
    "Metric": "metrics",
    "Option": "method",
    "Part": "statistics",
    "Pruner": "pruning",
    "Recipe": "recipe",
    "Recovered": "recovery.recovering",
    "Result": "searching.result",
    "Target": "target",
    "Trial": "trial",
    "Unit": "structure.units",
    "UnitChoice": "recipe",
    "Workload": "workload",
    "apply_to_module": "own_class",
    "join": "searching.loop",
    "prune": "pruning",
    "prune_gradually": "recovery.recovering",
    "recover": "recovery.recovering",
    "search": "searching.loop",
    "solve": "method",
    "trace": "structure.tracing",
    "uniform_recipe": "pruning",
}

__all__ = [
    "Axis",
    "AxisGraph",
    "Candidate",
    "Choice",
    "FrontPoint",
    "HwpruneError",
    "Item",
    "KnapsackSampler",
    "LayerStatistics",
    "Method",
    "Metric",
    "Option",
    "Part",
    "Pruner",
    "Recipe",
    "Recovered",
    "Result",
    "Target",
    "Trial",
    "Unit",
    "UnitChoice",
    "Workload",
    "apply_to_module",
    "criteria",
    "join",
    "patterns",
    "prune",
    "prune_gradually",
    "recover",
    "search",
    "solve",
    "trace",
    "uniform_recipe",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"hwprune.{_HOMES[name]}"), name)
    if name in ("criteria", "patterns"):
        return importlib.import_module(f"hwprune.{name}")
    raise AttributeError(f"module 'hwprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
