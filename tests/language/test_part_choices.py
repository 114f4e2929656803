"""What a block may become, and allocations as plans."""

from __future__ import annotations

import pytest

from hwprune.errors import UsageError
from hwprune.language.part_choices import by_block, choices_for
from hwprune.streaming.sweep_plan import SweepPlan

PLAN = SweepPlan((), "obs", "obs", multiple=32)


def kept(choices):
    return [one.kept for one in choices]


def test_the_default_space_has_each_part_from_whole_to_gone():
    found = choices_for({"neuron": 1536, "kv": 3}, PLAN, "default", {})
    assert kept(found.attention) == [3, 2, 1, 0] and kept(found.mlp) == [1536, 1344, 1152, 960, 768, 576, 384, 0]
    assert [one.pattern for one in found.attention] == ["", "kv", "kv", "attention"]


def test_many_groups_are_spread_and_few_neurons_stay_distinct():
    found = choices_for({"neuron": 64, "kv": 32}, PLAN, "default", {})
    assert kept(found.attention) == [32, 31, 23, 15, 7, 0] and kept(found.mlp) == [64, 32, 0]


@pytest.mark.parametrize(
    ("space", "attention", "mlp"),
    [("uniform", [2, 1], [64, 32]), ("deci", [2, 0], [64, 32, 0]), ("depth", [2, 0], [64, 0])],
)
def test_spaces(space, attention, mlp):
    found = choices_for({"neuron": 64, "kv": 2}, PLAN, space, {})
    assert kept(found.attention) == attention and kept(found.mlp) == mlp


def test_queries_go_where_groups_share_some_and_their_names_are_their_own():
    found = choices_for({"neuron": 64, "kv": 3, "query": 3}, PLAN, "default", {})
    assert [(one.pattern, round(one.share, 2), one.kept) for one in found.attention] == [
        ("", 0.0, 3), ("kv", 0.33, 2), ("kv", 0.67, 1), ("query", 0.33, 3), ("query", 0.67, 3), ("attention", 1.0, 0)
    ]  # fmt: skip
    names = [one.name for one in found.all]
    assert len(set(names)) == len(names)
    assert len(choices_for({"kv": 1, "query": 8}, PLAN, "default", {}).attention) == 1 + 2 + 1  # spread, as groups are
    for space in ("deci", "depth"):
        assert all(one.pattern != "query" for one in choices_for({"kv": 3, "query": 3, "neuron": 64}, PLAN, space, {}).attention)


def test_what_can_not_go_is_left_out_and_told():
    found = choices_for({"neuron": 64}, PLAN, "default", {"attention": "it adds more"})
    assert kept(found.attention) == [1] and found.refused == ("attention as a whole: it adds more",)
    with pytest.raises(UsageError, match="nothing of this model can be cut in space depth"):
        choices_for({"neuron": 64}, PLAN, "depth", {"attention": "a", "mlp": "b"})
    with pytest.raises(UsageError, match="one of default, uniform, deci, depth"):
        choices_for({"neuron": 64}, PLAN, "dflt", {})


def test_an_allocation_is_a_plan_for_each_block():
    choices = choices_for({"neuron": 64, "kv": 2}, PLAN, "default", {})
    assert by_block(choices, [(0, 0), (1, 1), (2, 0), (2, 2), (0, 2)]) == (
        {},
        {"kv": 0.5, "neuron": 0.5},
        {"attention": 1.0},
        {"layer": 1.0},
        {"mlp": 1.0},
    )
