"""Names and paths that users, plug-ins and notebooks rely on: a snapshot, to which names may be added and from which none may go."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import hwprune
from hwprune.common import old_paths

SNAPSHOT = json.loads(Path(__file__).with_name("public_names.json").read_text())


@pytest.mark.parametrize("module", SNAPSHOT)
def test_no_public_name_has_gone(module):
    found = importlib.import_module(f"hwprune.{module}" if module else "hwprune")
    assert [name for name in SNAPSHOT[module] if not hasattr(found, name)] == []


def test_the_package_lists_what_it_gives():
    assert sorted(hwprune.__all__) == hwprune.__all__ and set(SNAPSHOT[""]) <= set(dir(hwprune))
    for name in hwprune.__all__:
        assert getattr(hwprune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hwprune.nothing


@pytest.mark.parametrize("path", old_paths.MOVED)
def test_a_moved_module_is_the_same_object_under_its_old_path(path):
    old, new = importlib.import_module(path), importlib.import_module(old_paths.MOVED[path])
    assert old is new and new.__spec__.name == old_paths.MOVED[path]


def test_a_divided_module_hands_on_the_names_of_its_parts():
    from hwprune.export import read_recipe, to_onnx  # old paths: no type checker sees them
    from hwprune.searching.pricing import Prices, Pricing

    from hwprune.onnx_files import recipe_files
    from hwprune.onnx_files import to_onnx as exporting
    from hwprune.searching.sampling.savings import Savings
    from hwprune.searching.sampling.savings_estimator import SavingsEstimator

    assert (read_recipe, to_onnx, Prices, Pricing) == (
        recipe_files.read_recipe, exporting.to_onnx, Savings, SavingsEstimator,
    )  # fmt: skip
    with pytest.raises(ImportError):
        from hwprune.export import nothing  # noqa: F401


@pytest.mark.parametrize("name", ["pruning", "workload"])
def test_packages_that_were_modules_still_give_their_names(name):
    package = importlib.import_module(f"hwprune.{name}")
    wanted = {"pruning": ("Pruner", "Candidate", "prune", "uniform_recipe"), "workload": ("Workload",)}[name]
    assert all(getattr(package, each) is getattr(hwprune, each) for each in wanted)


def test_parameters_of_the_main_functions_stay():
    wanted = {
        "search": ["workload", "target", "space", "trials", "out"],
        "prune": ["workload", "recipe"],
        "trace": ["model", "example_inputs"],
        "uniform_recipe": ["workload", "pattern", "sparsity", "criterion", "compensation"],
    }
    for name, parameters in wanted.items():
        known = list(inspect.signature(getattr(hwprune, name)).parameters)
        assert [p for p in parameters if p not in known] == [], name


def test_importing_the_package_loads_no_framework():
    code = "import hwprune, hwprune.cli.main, sys; print([m for m in ('torch', 'onnx', 'optuna', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
