"""Hardware-aware pruning search: accuracy against measured speedup.

The public names are loaded when they are first used, so that the command line imports no torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from hwprune.common import old_paths
from hwprune.version import VERSION

# ONNX Runtime sends usage data to Microsoft unless it is told not to before it is imported, from a thread that also runs while
# something is timed. Who wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from hwprune import criteria, patterns
    from hwprune.errors import HwpruneError
    from hwprune.language.language_job import LanguageJob
    from hwprune.language.language_search import search_language
    from hwprune.layers.part import Part
    from hwprune.layers.statistics import LayerStatistics
    from hwprune.layers.units import Unit
    from hwprune.methods.method import Method, Option, solve
    from hwprune.pruning.candidate import Candidate
    from hwprune.pruning.inspection import Inspection, inspect
    from hwprune.pruning.own_class import apply_to_module
    from hwprune.pruning.pruner import Pruner, prune
    from hwprune.pruning.uniform import uniform_recipe
    from hwprune.records.recipe import Recipe, UnitChoice
    from hwprune.records.target import Target
    from hwprune.records.trial import Trial
    from hwprune.recovery.recover import Recovered, prune_gradually, recover
    from hwprune.searching.result import FrontPoint, Result
    from hwprune.searching.sampling.knapsack import KnapsackSampler
    from hwprune.searching.sampling.problem import Choice, Item
    from hwprune.searching.search import join, search
    from hwprune.searching.stored_run import load
    from hwprune.streaming.road import prune_folder
    from hwprune.streaming.sweep_plan import SweepPlan
    from hwprune.structure.axes import Axis
    from hwprune.structure.torch.analyse import trace
    from hwprune.structure.torch.graph import AxisGraph
    from hwprune.workload.metrics import Metric
    from hwprune.workload.running_statistics import refresh_batch_norms
    from hwprune.workload.text_windows import TextData
    from hwprune.workload.workload import Workload

__version__ = VERSION
old_paths.install()

_HOMES = {
    "Axis": "structure.axes",
    "AxisGraph": "structure.torch.graph",
    "Candidate": "pruning.candidate",
    "Choice": "searching.sampling.problem",
    "FrontPoint": "searching.result",
    "HwpruneError": "errors",
    "Inspection": "pruning.inspection",
    "Item": "searching.sampling.problem",
    "KnapsackSampler": "searching.sampling.knapsack",
    "LanguageJob": "language.language_job",
    "LayerStatistics": "layers.statistics",
    "Method": "methods.method",
    "Metric": "workload.metrics",
    "Option": "methods.method",
    "Part": "layers.part",
    "Pruner": "pruning.pruner",
    "Recipe": "records.recipe",
    "Recovered": "recovery.recover",
    "Result": "searching.result",
    "SweepPlan": "streaming.sweep_plan",
    "Target": "records.target",
    "TextData": "workload.text_windows",
    "Trial": "records.trial",
    "Unit": "layers.units",
    "UnitChoice": "records.recipe",
    "Workload": "workload.workload",
    "apply_to_module": "pruning.own_class",
    "inspect": "pruning.inspection",
    "join": "searching.search",
    "load": "searching.stored_run",
    "prune": "pruning.pruner",
    "prune_folder": "streaming.road",
    "prune_gradually": "recovery.recover",
    "recover": "recovery.recover",
    "refresh_batch_norms": "workload.running_statistics",
    "search": "searching.search",
    "search_language": "language.language_search",
    "solve": "methods.method",
    "trace": "structure.torch.analyse",
    "uniform_recipe": "pruning.uniform",
}

__all__ = [
    "Axis",
    "AxisGraph",
    "Candidate",
    "Choice",
    "FrontPoint",
    "HwpruneError",
    "Inspection",
    "Item",
    "KnapsackSampler",
    "LanguageJob",
    "LayerStatistics",
    "Method",
    "Metric",
    "Option",
    "Part",
    "Pruner",
    "Recipe",
    "Recovered",
    "Result",
    "SweepPlan",
    "Target",
    "TextData",
    "Trial",
    "Unit",
    "UnitChoice",
    "Workload",
    "apply_to_module",
    "criteria",
    "inspect",
    "join",
    "load",
    "patterns",
    "prune",
    "prune_folder",
    "prune_gradually",
    "recover",
    "refresh_batch_norms",
    "search",
    "search_language",
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
