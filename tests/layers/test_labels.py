"""Names of units that people know."""

from __future__ import annotations

import torch

from hwprune.layers.labels import common_module, labels
from hwprune.layers.units import units
from hwprune.structure.torch.analyse import trace
from hwprune.workload.demos import DigitsNet, DigitsTransformer


def of(model):
    return units(trace(model.eval(), (torch.zeros(1, 1, 16, 16),)))


def test_layers_and_branches_go_by_the_names_of_their_modules():
    table = of(DigitsNet())
    found = labels(table.values())
    assert found["blocks.0.conv1.weight:0"] == "blocks.0.conv1: channels"
    assert found["fc.weight"] == "fc: weights"
    branches = {found[name] for name, unit in table.items() if unit.branch is not None}
    assert "blocks.4 (residual branch)" in branches and not any("add" in label for label in branches)
    heads = labels(of(DigitsTransformer()).values())
    assert "blocks.2 (residual branch of norm2, fc1, fc2)" in heads.values()
    assert "blocks.1.qkv: heads" in heads.values() and "blocks.1.fc1: neurons" in heads.values()


def test_no_two_units_share_a_label():
    for model in (DigitsNet(), DigitsTransformer()):
        found = labels(of(model).values())
        assert len(set(found.values())) == len(found)


def test_the_module_that_all_lie_in():
    assert common_module(["blocks.1.conv1.weight", "blocks.1.bn.bias"]) == "blocks.1"
    assert common_module(["a.weight", "b.weight"]) == "a.weight ... b.weight"
