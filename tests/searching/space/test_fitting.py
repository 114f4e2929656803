"""Levels, patterns and methods that are left for a model on a target."""

from __future__ import annotations

from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.searching.space import fitting, space_file
from tests.conftest import tiny_workload


def test_measured_patterns_overrule_the_profile():
    pruner, target = Pruner(tiny_workload()), targets.load("cpu")
    space = fitting.build(
        space_file.load("mixed"), pruner, target, "avx512", refused={"2:4": None, "4:8": "no speedup: measured"}
    )
    assert any("2:4" in unit_space.levels for unit_space in space.units)
    assert ("4:8", "no speedup: measured") in space.left_out
