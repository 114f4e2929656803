"""Knobs, canonical recipes and what is left out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hwprune.errors import UnknownNameError, UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.searching.space import fitting, space_file
from hwprune.workload.workload import Workload
from tests.conftest import tiny_workload
from tests.searching.helpers import parameters


@pytest.fixture(scope="module")
def pruner():
    return Pruner(tiny_workload())


@pytest.fixture
def cpu():
    return targets.load("cpu")


def test_levels_are_on_the_targets_multiple(pruner, cpu):
    space = fitting.build(space_file.load("structured"), pruner, cpu, "avx512")
    (unit_space,) = space.units
    assert (unit_space.unit, unit_space.role, unit_space.size) == ("conv1.weight:0", "channel", 64)
    assert unit_space.levels == {"channel": (0.25, 0.5, 0.75)}
    assert unit_space.methods == ("obs", "l2")
    assert 10**space.size_log10 == pytest.approx(1 + 3 * 2)


@pytest.mark.parametrize(
    ("size", "multiple", "step"),
    [(64, 16, 16), (48, 16, 8), (32, 16, 8), (16, 16, 4), (8, 16, 2), (6, 16, 1), (100, 16, 16), (96, 32, 16)],
)
def test_quantum(size, multiple, step):
    assert fitting.quantum(size, multiple) == step


def test_what_cannot_pay_is_left_out_with_the_reason(pruner, cpu):
    space = fitting.build(space_file.load("mixed"), pruner, cpu, "avx512")
    reasons = dict(space.left_out)
    assert "no sparse kernels" in reasons["2:4"]
    assert "zeros" in reasons["unstructured"]
    assert reasons["fc.weight:0"] == "model output" or "fc.weight:0" not in reasons
    assert {unit_space.role for unit_space in space.units} == {"channel"}


def test_all_patterns_overrides(pruner, cpu):
    space = fitting.build(space_file.load("mixed"), pruner, cpu, "avx512", all_patterns=True)
    matrices = {unit_space.unit: unit_space for unit_space in space.units if unit_space.role == "matrix"}
    assert set(matrices) == {"stem.weight", "conv1.weight", "conv2.weight", "fc.weight"}
    assert "2:4" not in matrices["stem.weight"].levels  # one input channel
    assert matrices["conv2.weight"].levels["1:4"] == (0.75,)
    assert matrices["conv2.weight"].levels["unstructured"] == (0.5, 0.7, 0.8, 0.9)


def test_equal_prunings_are_equal_recipes(pruner, cpu):
    mixed = dataclasses.replace(space_file.load("mixed"), criteria=("l2", "l1"))
    space = fitting.build(mixed, pruner, cpu, "avx512", all_patterns=True)
    dense = space.uniform(0.0, "l2")
    assert space.recipe(dense).choices == ()
    assert space.recipe(dense).compensation == "none"
    one = {**dense, "conv2: weights kept (%)": 50, "conv2: weights, pattern": "2:4", "conv2: weights, criterion": "l1"}
    recipe = space.recipe(one)
    assert [(choice.unit, choice.pattern, choice.sparsity) for choice in recipe.choices] == [("conv2.weight", "2:4", 0.5)]
    for change in (
        {"conv2: weights, criterion": "l2"},
        {"conv2: weights kept (%)": 10},
        {"fc: weights, criterion": "l1"},
        {"fc: weights, pattern": "unstructured"},
    ):
        assert set(change) <= set(one) and space.recipe({**one, **change}) == recipe
    block = {**one, "conv2: weights, pattern": "block:4x4"}
    assert space.recipe(block) != space.recipe({**block, "conv2: weights, criterion": "l2"})  # sums of |w| and of w^2 differ


def test_uniform_takes_the_nearest_level(pruner, cpu):
    space = fitting.build(space_file.load("structured"), pruner, cpu, "avx512")
    for sparsity, level in ((0.0, 0), (0.1, 0), (0.2, 1), (0.5, 2), (0.9, 3)):
        assert space.uniform(sparsity, "l2") == {"conv1: channels kept": 64 - 16 * level, "conv1: channels, criterion": "l2"}


def test_nothing_to_search_says_why(pruner, cpu):
    with pytest.raises(UsageError, match=r"nothing to search(.|\n)*no sparse kernels"):
        fitting.build(space_file.load("two-four"), pruner, cpu, "avx512")


def test_excluded_units_stay_dense(pruner, cpu, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('schema = 1\nroles = ["channel", "hidden"]\npatterns = []\ncriteria = ["l1"]\nexclude = ["conv1*"]\n')
    space = fitting.build(space_file.load(str(path)), pruner, cpu, "avx512")
    assert [unit_space.unit for unit_space in space.units] == ["stem.weight:0"]
    assert ("conv1.weight:0", "excluded by the search space") in space.left_out


def test_every_shipped_space_loads():
    for name in space_file.names():
        assert space_file.load(name).description


def test_space_faults_are_told_at_once(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('schema = 1\nroles = ["chanel"]\npatterns = ["2:2", "head"]\ncriteria = []\nlevels = 0\nlevles = 3\n')
    with pytest.raises(UsageError) as caught:
        space_file.load(str(path))
    text = str(caught.value)
    for part in ("'chanel'", "did you mean 'channel'", "2:2", "'head' is chosen by roles", "at least one", "levels", "levles"):
        assert part in text


def test_unknown_space():
    with pytest.raises(UnknownNameError, match="default"):
        space_file.load("defualt")


def test_branches_are_dropped_or_not_and_leave_nothing_to_choose_inside(pruner, cpu):
    space = fitting.build(space_file.load("depth"), pruner, cpu, "avx512")
    (branch,) = [unit_space for unit_space in space.units if unit_space.role == "branch"]
    assert branch.levels == {"branch": (1.0,)} and branch.methods == ("drop",)
    assert space.uniform(0.9, "l2")[branch.parameter] == "kept"  # the warm start keeps every branch
    chosen = [unit_space.parameters(1) for unit_space in space.units]
    (choice,) = space.recipe(
        {name: value for one in chosen for name, value in one.items()}
    ).choices  # the channels inside the branch are gone with it
    assert (choice.unit, choice.pattern, choice.sparsity) == (branch.unit, "branch", 1.0)


def test_tied_units_share_a_knob(cpu, tmp_path):
    from tests.structure.test_branches import Blocks

    x = torch.randn(1, 3, 9, 9)
    data = [(torch.randn(4, 3, 9, 9), None)]
    repeated = Pruner(Workload("blocks", Blocks(False).eval(), (x,), data, data, metric="agreement"))
    file = tmp_path / "tied.toml"
    file.write_text('schema = 1\nroles = ["channel", "branch"]\npatterns = []\ncriteria = ["l2"]\ntie = true\n')
    space = fitting.build(space_file.load(str(file)), repeated, cpu, "avx512")
    (unit_space,) = [unit_space for unit_space in space.units if unit_space.unit == "body.0.a.weight:0"]
    assert unit_space.tied == ("body.1.a.weight:0",)
    recipe = space.recipe(parameters(space, {unit_space.unit: (1,)}))
    assert {choice.unit for choice in recipe.choices} == {"body.0.a.weight:0", "body.1.a.weight:0"}
