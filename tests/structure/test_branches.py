"""Branches: found on the graph, dropped exactly, counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import UnknownNameError, UsageError
from hwprune.layers.units import ties
from hwprune.onnx_files import recipe_files
from hwprune.pruning.pruner import Pruner
from tests.conftest import TinyNet, randomise, tiny_workload
from tests.structure.programs import difference


class Block(nn.Module):
    def __init__(self, before, after, in_place):
        super().__init__()
        self.a, self.b = nn.Conv2d(before, 6, 3, 1, 1), nn.Conv2d(6, after, 3, 1, 1)
        self.bn = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.relu, self.in_place = nn.ReLU(inplace=in_place), in_place

    def forward(self, x):
        y = self.b(self.relu(self.bn(self.a(x))))
        if self.in_place:
            y += self.down(x)
            return self.relu(y)
        return self.relu(self.down(x) + y)


class Blocks(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(Block(4, 4, in_place), Block(4, 4, in_place), Block(4, 8, in_place), Block(8, 8, in_place))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("in_place", [False, True])
def test_residual_blocks_are_found_and_dropped(in_place):
    model = randomise(Blocks(in_place)).double()
    x = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    graph = hwprune.trace(model, (x[:1],))
    owners = [sorted({name.split(".")[1] for name in branch.parameters}) for branch in graph.branches]
    assert owners == [["0"], ["1"], ["2"], ["3"]]
    assert not any("down" in name for branch in graph.branches for name in branch.parameters)
    for drop in ([graph.branches[0].name], [graph.branches[2].name], [b.name for b in graph.branches]):
        cut, masked = graph.cut({}, drop), graph.mask({}, drop)
        with torch.no_grad():
            assert difference(cut(x), masked(x)) < 1e-9
            assert difference(cut(x), model(x)) > 1e-6
        gone = graph.dead(drop)
        assert set(dict(cut.named_parameters())) == set(dict(model.named_parameters())) - gone
        assert sum(p.numel() for p in cut.parameters()) == graph.parameter_count({}, drop)
        assert graph.macs({}, 1, drop) < graph.macs({})
    cut(x).sum().backward()


def test_a_dropped_branch_is_the_skip_alone():
    model = randomise(TinyNet())
    x = torch.randn(3, 1, 8, 8)
    graph = hwprune.trace(model, (x[:1],))
    (branch,) = graph.branches
    with torch.no_grad():
        expected = model.fc(torch.relu(torch.relu(model.bn(model.stem(x)))).mean(dim=(2, 3)))
        assert torch.allclose(graph.cut({}, [branch.name])(x), expected, atol=1e-6)


def test_embeddings_that_are_summed_are_no_branch():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.place, self.out = nn.Embedding(10, 8), nn.Embedding(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.token(x) + self.place(torch.arange(x.shape[1])))

    assert hwprune.trace(Tokens(), (torch.zeros(1, 6, dtype=torch.long),)).branches == ()


def test_recipes_with_branches(tmp_path):
    workload = tiny_workload()
    pruner = Pruner(workload)
    recipe = hwprune.uniform_recipe(workload, "branch", 1.0)
    candidate = pruner.prune(recipe)
    assert pruner.check_cut(candidate) < 1e-5
    assert candidate.parameter_count == pruner.graph.parameter_count({}, candidate.drop) < 200
    candidate.export(tmp_path)
    stored = recipe_files.read_recipe(tmp_path / "recipe.json")
    assert stored.recipe == recipe
    assert Pruner(workload).prune(stored.recipe, stored.keeps, stored.masks).drop == candidate.drop
    assert pruner.template.reason is None
    with pytest.raises(UsageError, match="must be 1"):
        hwprune.UnitChoice("add", "branch", 0.5, "drop")
    with pytest.raises(UsageError, match="role branch"):
        pruner.prune(hwprune.Recipe((hwprune.UnitChoice(candidate.drop[0], "channel", 0.5, "l2"),)))
    with pytest.raises(UnknownNameError):
        pruner.graph.cut({}, ["nothing"])


def test_units_inside_a_dropped_branch_are_dead():
    pruner = Pruner(tiny_workload())
    (branch,) = pruner.graph.branches
    assert pruner.dead_units([branch.name]) == {"conv1.weight:0", "conv1.weight", "conv2.weight"}


def test_repeated_blocks_are_tied():
    model = randomise(Blocks(False))
    x = torch.randn(1, 3, 9, 9)
    data = [(torch.randn(4, 3, 9, 9), None)]
    pruner = Pruner(hwprune.Workload("blocks", model, (x,), data, data, metric="agreement"))
    alike = ties(pruner.units)
    assert alike["body.1.a.weight:0"] == "body.0.a.weight:0"
    assert alike["body.3.a.weight:0"] != "body.0.a.weight:0"
    assert alike["body.1.a.weight"] == "body.0.a.weight"
