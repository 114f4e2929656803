"""Uniform recipes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hwprune
from hwprune.errors import UsageError
from hwprune.pruning.pruner import Pruner
from tests.calibration.test_collect import workload_of
from tests.conftest import randomise, tiny_workload


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.relu(self.fc(self.embed(ids)))).mean(dim=1)


def test_a_head_tied_to_the_embedding_is_left_out_of_uniform_recipes():
    ids = torch.randint(0, 20, (16, 4), generator=torch.Generator().manual_seed(0))
    pruner = Pruner(workload_of(randomise(TiedHead()), (ids,)))
    for criterion in ("obs", "wanda", "taylor"):
        recipe = hwprune.uniform_recipe(pruner, "unstructured", 0.5, criterion)
        assert [choice.unit for choice in recipe.choices] == ["fc.weight"]
        pruner.prune(recipe)


def test_n_of_m_with_another_sparsity_is_refused():
    pruner = Pruner(tiny_workload())
    with pytest.raises(UsageError, match="removes 0.5"):
        pruner.prune(hwprune.Recipe((hwprune.UnitChoice("conv2.weight", "2:4", 0.9, "l1"),)))


def test_branches_are_ranked_by_influence():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(6, 6)
            self.small, self.large = nn.Linear(6, 6), nn.Linear(6, 6)
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.small(x)
            x = x + self.large(x)
            return self.fc(x)

    model = randomise(Two())
    with torch.no_grad():
        model.small.weight *= 0.01
        model.small.bias *= 0.01
    pruner = Pruner(workload_of(model, (torch.randn(40, 6),)))
    (choice,) = hwprune.uniform_recipe(pruner, "branch", 0.5, compensation="none").choices
    candidate = pruner.prune(hwprune.Recipe((choice,), "none"))
    assert "small.weight" not in candidate.module.state_dict()
    with pytest.raises(UsageError, match="drops 0 of 2"):
        hwprune.uniform_recipe(pruner, "branch", 0.1)


def test_global_scope_takes_one_threshold():
    workload = tiny_workload()
    pruner = Pruner(workload)
    recipe = hwprune.uniform_recipe(pruner, "unstructured", 0.6, "lamp", "none", scope="global")
    candidate = pruner.prune(recipe)
    matrices = [pruner.units[name].weights[name] for name in ("stem.weight", "conv1.weight", "conv2.weight", "fc.weight")]
    total = sum(w.numel() for w in matrices)
    zeros = sum(int((~mask).sum()) for mask in candidate.masks.values())
    assert zeros == pytest.approx(0.6 * total, abs=len(matrices))
    scores = {name: hwprune.criteria.get("lamp").scores(pruner.units[name].weights[name]) for name in candidate.masks}
    highest_gone = max(float(scores[name][~mask].max()) for name, mask in candidate.masks.items() if not mask.all())
    lowest_kept = min(float(scores[name][mask].min()) for name, mask in candidate.masks.items())
    assert highest_gone <= lowest_kept
    with pytest.raises(UsageError, match="scope global"):
        hwprune.uniform_recipe(pruner, "2:4", 0.5, "lamp", scope="global")
