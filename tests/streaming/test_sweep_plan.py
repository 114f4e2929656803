"""What a sweep does to every block, and to each."""

from __future__ import annotations

import pytest

from hwprune.errors import UsageError
from hwprune.streaming.sweep_plan import SweepPlan


def test_a_plan_of_all_blocks_is_that_of_each():
    plan = SweepPlan([("neuron", 0.25), ("layer", 0.2)], "obs", "obs")
    assert plan.of(3).of_blocks == [("neuron", 0.25)] and not plan.lost("layer") and not plan.takes("attention")


def test_each_block_has_its_own():
    blocks = ({"neuron": 0.25, "head": 0.0}, {"layer": 1}, {"attention": 1, "neuron": 0.5}, {"mlp": 0})
    plan = SweepPlan((), "obs", "obs", multiple=8, by_block=blocks)
    assert plan.of(0).of_blocks == [("neuron", 0.25)] and plan.of(2).of_blocks == [("neuron", 0.5)] and not plan.of(3).of_blocks
    assert plan.of(0).multiple == 8
    assert plan.lost("layer") == [1] and plan.lost("attention") == [2] and not plan.lost("mlp")
    assert plan.takes("attention") and not plan.takes("mlp")


def test_both_at_once_are_refused():
    with pytest.raises(UsageError, match="no place for patterns"):
        SweepPlan([("neuron", 0.25)], "obs", "obs", by_block=({},))
