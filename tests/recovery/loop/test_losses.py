"""Losses: labels, the dense model's answers, its inner outputs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import hwprune
from hwprune import uniform_recipe
from hwprune.errors import CandidateFailure
from hwprune.pruning.pruner import Pruner
from hwprune.recovery.loop import distillation
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import recover
from hwprune.workload.metrics import Metric
from tests.recovery.conftest import batches
from tests.recovery.helpers import cut, masked


def test_features_of_the_teacher_come_nearer(stripes):
    from hwprune.recovery.loop import distillation

    recipe = uniform_recipe(stripes, "channel", 0.5, criterion="l1", compensation="none")
    recipe = dataclasses.replace(recipe, choices=tuple(c for c in recipe.choices if c.unit.startswith("inner")))
    candidate = stripes.prune(recipe)
    names = [branch.name for branch in stripes.graph.branches]
    assert distillation.shared_nodes(candidate.module, stripes.graph.module, stripes.workload.example_inputs, names) == names
    images, _ = batches(128, 9, 128)[0]

    def distance(module):
        with torch.no_grad():
            _, mine = distillation.tapped(module, names)(images)
            _, other = distillation.tapped(stripes.graph.module, names)(images)
        return float(distillation.features(mine, other))

    with_it, without = (
        recover(stripes, candidate, Plan("distill", 6, features=f, rate=0.01, norms="frozen")) for f in (3.0, 0.0)
    )
    assert distance(with_it.candidate.module) < 0.9 * distance(without.candidate.module)
    assert distance(with_it.candidate.module) < 0.9 * distance(candidate.module)


def test_labels_are_not_needed_where_the_dense_model_teaches(stripes):
    from hwprune.pruning.pruner import Pruner

    splits = {name: [(x, None) for x, _ in getattr(stripes.workload, name)] for name in ("train", "validation", "calibration")}
    pruner = Pruner(dataclasses.replace(stripes.workload, metric="agreement", **splits))
    made = recover(pruner, cut(stripes), "distill:4")
    assert made.outcome.before.value < 0.9  # agreement with the dense model, not with itself
    assert made.outcome.after.value > made.outcome.before.value


def test_agreement_is_with_the_dense_model_where_labels_teach_too(stripes):
    from hwprune.pruning.pruner import Pruner

    pruner = Pruner(dataclasses.replace(stripes.workload, metric="agreement"))
    assert recover(pruner, cut(stripes), "finetune:1").outcome.before.value < 0.9


def test_a_loss_without_a_gradient_is_a_failure_with_its_reason(stripes):
    pruner = Pruner(dataclasses.replace(stripes.workload, loss=lambda out, y: (out.argmax(1) != y).float().mean()))
    with pytest.raises(CandidateFailure, match="does not require grad"):
        recover(pruner, masked(pruner, 0.5), "finetune:1")


def test_a_distillation_needs_no_labels_whatever_the_metric_needs(stripes):
    bare = [images for images, _ in stripes.workload.train]
    pruner = Pruner(dataclasses.replace(stripes.workload, train=bare))
    made = recover(pruner, masked(pruner, 0.8), "distill:4")
    assert made.outcome.after.value > made.outcome.before.value
    with pytest.raises(CandidateFailure, match="no targets, and distill"):
        recover(pruner, masked(pruner, 0.5), "finetune:1")


def test_regression_is_distilled_by_the_spread_of_all_data_not_of_a_batch():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 1)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    torch.manual_seed(0)
    x = torch.randn(65, 4)
    data = [(part, part.sum(dim=1, keepdim=True)) for part in x.split(32)]
    error = Metric("error", lambda out, y: (out - y).square().mean(dim=1), higher_is_better=False)
    workload = hwprune.Workload("line", Line(), (torch.zeros(1, 4),), data, data, None, data, error, nn.functional.mse_loss)
    pruner = Pruner(workload)
    made = recover(pruner, masked(pruner, 0.5), Plan("distill", 2, rate=1e-3))  # the last batch holds one example
    assert made.outcome.restarts == 0
    assert float(distillation.logits(torch.ones(1, 1), torch.zeros(1, 1), None, 2.0, 4.0)) == pytest.approx(0.25)


def test_the_temperature_does_not_weaken_what_the_teacher_says():
    """T^2 KL of the softened distributions (Hinton et al. 2015, section 2.1), by PyTorch's own KL."""
    draw = torch.Generator().manual_seed(0)
    found, wanted = torch.randn(8, 5, generator=draw), torch.randn(8, 5, generator=draw)
    for temperature in (1.0, 4.0, 20.0):
        soft = [(x / temperature).log_softmax(dim=1) for x in (found, wanted)]
        kl = torch.nn.functional.kl_div(soft[0], soft[1], reduction="batchmean", log_target=True)
        assert distillation.logits(found, wanted, 1, temperature) == pytest.approx(float(temperature**2 * kl), rel=1e-4)


class TwoHeads(nn.Module):
    """A body with an answer and boxes; each head has a layer of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.a1, self.a2, self.b1, self.b2 = nn.Linear(32, 32), nn.Linear(32, 4), nn.Linear(32, 32), nn.Linear(32, 6)

    def forward(self, x):
        y = self.body(x)
        return self.a2(torch.relu(self.a1(y))), 50 * self.b2(torch.relu(self.b1(y)))


def test_every_output_is_taught():
    """Without that the boxes of a detector are ruined while its scores come nearer to the teacher's."""
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1))
    loader = [((part,), None) for part in x.split(32)]
    workload = hwprune.Workload(
        "two", TwoHeads(), (x[:1],), loader[:4], loader[4:], train=loader[:4], metric="agreement", class_axis=(1, "none")
    )
    pruner = Pruner(workload)
    candidate = pruner.prune(uniform_recipe(pruner, "neuron", 0.5, criterion="l2", compensation="none"))
    made = recover(pruner, candidate, Plan("distill", 30, rate=0.01))
    held = torch.cat([part for (part,), _ in loader[4:]])

    def off(module):
        with torch.no_grad():
            return [float((a - b).square().mean() / b.var()) for a, b in zip(module(held), workload.model(held), strict=True)]

    before, after = off(candidate.module), off(made.candidate.module)
    assert after[0] < 0.7 * before[0]
    assert after[1] < 0.7 * before[1]
