"""Levels, patterns and methods that are left for a model on a target."""

from __future__ import annotations

from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.searching.space import fitting, space_file
from tests.conftest import tiny_workload
from tests.searching.networks import CifarResNet, SeparableNet, image_workload


def test_measured_patterns_overrule_the_profile():
    pruner, target = Pruner(tiny_workload()), targets.load("cpu")
    space = fitting.build(
        space_file.load("mixed"), pruner, target, "avx512", refused={"2:4": None, "4:8": "no speedup: measured"}
    )
    assert any("2:4" in unit_space.levels for unit_space in space.units)
    assert ("4:8", "no speedup: measured") in space.left_out


def test_a_narrow_resnet_has_sizes_left_in_every_layer_and_in_its_residual_stream():
    pruner = Pruner(image_workload("resnet20", CifarResNet()))
    space = fitting.build(space_file.load("default"), pruner, targets.load("cpu"), "avx512")
    axes = [unit for unit in space.units if unit.role != "branch"]
    assert sorted(unit.size for unit in axes if unit.role == "hidden") == [16, 32, 64]
    assert len([unit for unit in axes if unit.role == "channel"]) == 9
    for unit in axes:
        (sparsities,) = unit.levels.values()
        assert len(sparsities) >= 3
    narrow = next(unit for unit in axes if unit.size == 16)
    assert narrow.levels[narrow.role] == (0.25, 0.5, 0.75)


def test_the_default_space_reaches_nearly_all_of_a_depthwise_separable_network():
    pruner = Pruner(image_workload("separable", SeparableNet()))
    space = fitting.build(space_file.load("default"), pruner, targets.load("cpu"), "avx512")
    wide = {unit.unit: unit for unit in space.units if unit.role == "hidden"}
    assert sorted(unit.size for unit in wide.values()) == [64, 128]
    smallest = {name: round((1 - max(unit.levels["hidden"])) * unit.size) for name, unit in wide.items()}
    assert pruner.macs(smallest) < 0.25 * pruner.macs({})
