"""Options of units put together."""

from __future__ import annotations

import torch

import hwprune
from hwprune.onnx_files import recipe_files
from hwprune.pruning.pruner import Pruner
from tests.conftest import tiny_workload


def test_composition_cut_then_two_four_then_sequential(plain, tmp_path):
    """The mask holds through every later step, on disk too, and stored decisions give the same candidate."""
    pruner = Pruner(plain)
    choices = (
        hwprune.UnitChoice("a.weight:0", "channel", 0.5, "obs"),
        hwprune.UnitChoice("join.weight", "2:4", 0.5, "sparsegpt"),
        hwprune.UnitChoice("fc.weight", "unstructured", 0.7, "wanda"),
        hwprune.UnitChoice("groups.weight", "2:4", 0.5, "obs"),
    )
    for steps in ("none", "obs", "lstsq", "obs+sequential", "obs+meanvar"):
        candidate = pruner.prune(hwprune.Recipe(choices, steps))
        state = candidate.module.state_dict()
        assert state["join.weight"].shape == (16, 24, 1, 1)
        assert ((state["join.weight"] != 0).reshape(16, 6, 4).sum(dim=2) <= 2).all()
        assert ((state["groups.weight"] != 0).reshape(24, 4, 9).sum(dim=1) <= 2).all()
        assert int((state["fc.weight"] == 0).sum()) == round(0.7 * 240)
    folder = tmp_path / "out"
    candidate = pruner.prune(hwprune.Recipe(choices, "obs+sequential"))
    candidate.export(folder)
    stored = recipe_files.read_recipe(folder / "recipe.json")
    again = Pruner(plain).prune(stored.recipe, stored.keeps, stored.masks, stored.orders)
    for name, tensor in candidate.module.state_dict().items():
        assert torch.allclose(tensor, again.module.state_dict()[name], rtol=1e-3, atol=1e-3), name


def test_permuted_two_four_computes_the_same_before_the_mask_and_keeps_more(tmp_path):
    workload = tiny_workload()
    pruner = Pruner(workload)
    kept = {}
    for pattern in ("2:4", "2:4:permuted"):
        recipe = hwprune.Recipe(
            (
                hwprune.UnitChoice("conv1.weight:0", "channel", 0.25, "l1"),
                hwprune.UnitChoice("conv2.weight", pattern, 0.5, "l1"),
            )
        )
        candidate = pruner.prune(recipe)
        weight = candidate.module.state_dict()["conv2.weight"]
        assert ((weight != 0).reshape(8, 12, 4, 3, 3).sum(dim=2) == 2).all()
        kept[pattern] = float(weight.abs().sum())
    assert kept["2:4:permuted"] > kept["2:4"]
    assert sorted(candidate.orders["conv1.weight:0"].tolist()) == list(range(48))
    # The order is carried to what makes the axis: without the mask, the module is the cut model.
    orders = candidate.orders
    plain = pruner.graph.cut(candidate.keeps)
    other = pruner.graph.cut(candidate.keeps)
    pruner.graph.reorder(other, candidate.keeps, orders)
    x = torch.randn(5, 1, 8, 8)
    assert not torch.equal(plain.state_dict()["conv1.weight"], other.state_dict()["conv1.weight"])
    assert torch.allclose(plain(x), other(x), atol=1e-5)
    folder = tmp_path / "out"
    candidate.export(folder)
    stored = recipe_files.read_recipe(folder / "recipe.json")
    assert stored.orders["conv1.weight:0"].tolist() == orders["conv1.weight:0"].tolist()
    again = pruner.prune(stored.recipe, stored.keeps, stored.masks, stored.orders)
    assert torch.allclose(again.module(x), candidate.module(x), atol=1e-5)
    for steps in ("obs", "obs+sequential"):
        repaired = pruner.prune(hwprune.Recipe(recipe.choices, steps))
        weight = repaired.module.state_dict()["conv2.weight"]
        assert ((weight != 0).reshape(8, 12, 4, 3, 3).sum(dim=2) <= 2).all()
        assert torch.isfinite(repaired.module(x)).all()
