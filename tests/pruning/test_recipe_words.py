"""A recipe in words."""

from __future__ import annotations

from hwprune.pruning.recipe_words import described
from hwprune.records.recipe import UnitChoice
from hwprune.workload.demos import DigitsNet
from tests.layers.test_labels import of


def test_a_recipe_in_words():
    table = of(DigitsNet())
    branch = next(name for name, unit in table.items() if unit.branch is not None and "blocks.1." in next(iter(unit.weights)))
    choices = [
        UnitChoice("blocks.0.conv1.weight:0", "channel", 0.25, "l2"),
        UnitChoice(branch, "branch", 1.0, "drop"),
        UnitChoice("fc.weight", "unstructured", 0.5, "l1"),
    ]
    assert described(choices, table) == (
        "blocks.0.conv1: channels 48 of 64; blocks.1 (residual branch) dropped; fc: weights 50% zero (unstructured)"
    )
    assert described([], table) == "everything stays dense"
