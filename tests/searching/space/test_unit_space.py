"""How choices are spelled as Optuna's parameters: against values written by hand."""

from __future__ import annotations

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hwprune.searching.space.unit_space import UnitSpace

AXIS = UnitSpace("conv1.weight:0", "channel", 64, {"channel": (0.25, 0.5, 0.75)}, ("l2", "obs"), label="conv1: channels")
MASK = UnitSpace("fc.weight", "", 10, {"2:4": (0.5,), "unstructured": (0.5, 0.9)}, ("l2",), label="fc: weights")
BRANCH = UnitSpace("add", "branch", 1, {"branch": (1.0,)}, ("drop",), label="blocks.1 (residual branch)")


def test_names_and_values_are_what_people_count():
    assert AXIS.parameters(1, "channel", "obs") == {"conv1: channels kept": 48, "conv1: channels, criterion": "obs"}
    assert MASK.parameters(2, "unstructured") == {"fc: weights kept (%)": 10, "fc: weights, pattern": "unstructured"}
    assert BRANCH.parameters(1) == {"blocks.1 (residual branch)": "dropped"}
    assert BRANCH.parameters(0) == {"blocks.1 (residual branch)": "kept"}


def test_distributions_hold_every_value():
    assert AXIS.distributions() == {
        "conv1: channels kept": IntDistribution(16, 64, step=16),
        "conv1: channels, criterion": CategoricalDistribution(("l2", "obs")),
    }
    assert MASK.distributions() == {
        "fc: weights kept (%)": IntDistribution(10, 100, step=10),
        "fc: weights, pattern": CategoricalDistribution(("2:4", "unstructured")),
    }
    assert BRANCH.distributions() == {"blocks.1 (residual branch)": CategoricalDistribution(("kept", "dropped"))}


@pytest.mark.parametrize("space", [AXIS, MASK, BRANCH], ids=lambda space: space.unit)
def test_what_is_written_is_read(space):
    for pattern, levels in space.levels.items():
        for method in space.methods:
            for level in range(len(levels) + 1):
                assert space.read(space.parameters(level, pattern, method)) == (level, pattern, method)


@pytest.mark.parametrize(("kept", "level"), [(64, 0), (57, 0), (50, 1), (20, 3), (16, 3)])
def test_a_number_between_two_sizes_means_the_nearest(kept, level):
    assert AXIS.read({"conv1: channels kept": kept, "conv1: channels, criterion": "l2"}) == (level, "channel", "l2")


def test_a_pattern_of_one_sparsity_has_it_however_much_is_asked_for():
    assert MASK.read({"fc: weights kept (%)": 10, "fc: weights, pattern": "2:4"}) == (1, "2:4", "l2")
    assert MASK.parameters(2, "2:4")["fc: weights kept (%)"] == 50


def test_fractions_of_a_per_cent_are_drawn_from_a_range():
    space = UnitSpace("fc.weight", "", 10, {"1:16": (0.9375,), "2:4": (0.5,)}, ("l2",))
    assert space.distributions()["fc.weight kept (%)"] == FloatDistribution(6.25, 100)
    assert space.read({"fc.weight kept (%)": 7.1, "fc.weight, pattern": "1:16"}) == (1, "1:16", "l2")


def test_sizes_that_are_no_whole_share_are_told_in_per_cent():
    space = UnitSpace("h", "hidden", 3, {"hidden": (0.1, 0.2)}, ("l2",))  # both leave three of three
    assert space.parameters(1) == {"h kept (%)": 90}
    assert [space.read(space.parameters(level))[0] for level in range(3)] == [0, 1, 2]


def test_older_studies_are_read():
    assert AXIS.read({"level:conv1.weight:0": 2, "method:conv1.weight:0": "obs"}) == (2, "channel", "obs")
    assert MASK.read({"level:fc.weight": 2, "pattern:fc.weight": "2:4"}) == (1, "2:4", "l2")
    assert BRANCH.read({"level:add": 1}) == (1, "branch", "drop")


def test_parameters_of_something_else_say_nothing():
    assert AXIS.read({}) is None
    assert AXIS.read({"conv2: channels kept": 16}) is None
