"""Batch norms are re-estimated by their definition."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hwprune
from hwprune.compensation import COMPENSATIONS, Context
from hwprune.errors import CandidateFailure
from hwprune.pruning.pruner import Pruner
from tests.calibration.test_collect import workload_of
from tests.conftest import randomise, tiny_workload


class NormOverTokens(nn.Module):
    def __init__(self, tokens):
        super().__init__()
        self.a, self.fc, self.norm = nn.Linear(6, 16), nn.Linear(16, 16, bias=False), nn.BatchNorm1d(tokens)

    def forward(self, x):
        return self.norm(self.fc(torch.relu(self.a(x)))).mean(dim=1)


@pytest.mark.parametrize("tokens", [10, 16])
def test_a_batch_norm_over_tokens_is_no_place_for_a_bias(tokens):
    model = randomise(NormOverTokens(tokens))
    workload = workload_of(model, (torch.randn(64, tokens, 6, generator=torch.Generator().manual_seed(0)),), batch=32)
    pruner = Pruner(workload)
    assert not pruner.layers["fc.weight"].movable
    recipe = hwprune.uniform_recipe(pruner, "neuron", 0.5, "obs", "obs")
    assert torch.equal(pruner.prune(recipe).module.state_dict()["norm.running_mean"], model.norm.running_mean)


@pytest.mark.parametrize("batch", [1, 20])
def test_norms_that_have_not_converged_are_carried_over_all_the_same(batch):
    """Running statistics far from those of the batches, and batches of one."""
    workload = tiny_workload("top1")
    with torch.no_grad():
        for norm in (workload.model.bn, workload.model.bn1, workload.model.bn2):
            norm.running_mean.mul_(0.1)
            norm.running_var.mul_(0.3)
    data = torch.cat([inputs for inputs, _ in workload.validation])
    labels = torch.cat([targets for _, targets in workload.validation])
    workload = dataclasses.replace(workload, calibration=list(zip(data.split(batch), labels.split(batch), strict=True)))
    pruner = Pruner(workload)

    def change(steps):
        candidate = pruner.prune(hwprune.uniform_recipe(pruner, "channel", 0.5, "l1", steps))
        with torch.no_grad():
            y, z = workload.model(data), candidate.module(data)
        return float((y - z).square().mean() / y.var(dim=0).mean())

    assert change("batchnorm") < change("none")
    assert change("obs+sequential+batchnorm") == pytest.approx(change("obs+sequential"))


def test_batch_norm_reestimation_against_its_definition():
    """The dense statistics, moved by the change of mean and scaled by the ratio of variances of the layer's outputs on the data."""
    workload = tiny_workload()
    pruner = Pruner(workload)
    candidate = pruner.prune(hwprune.Recipe((hwprune.UnitChoice("conv1.weight:0", "channel", 0.5, "l1"),), "batchnorm"))
    keep = candidate.keeps["conv1.weight:0"]
    model = workload.model
    batches = [inputs for inputs, _ in workload.calibration]
    own, dense = [], []
    for x in batches:
        hidden = torch.relu(model.bn1(model.conv1(torch.relu(model.bn(model.stem(x))))))
        dense.append(model.conv2(hidden).detach())
        own.append(F.conv2d(hidden[:, keep], model.conv2.weight[:, keep], padding=1).detach())

    def moments(ys):
        y = torch.cat(ys)
        return y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)

    (mean, variance), (dense_mean, dense_variance) = moments(own), moments(dense)
    state = candidate.module.state_dict()
    assert torch.allclose(state["bn2.running_mean"], model.bn2.running_mean + mean - dense_mean, atol=1e-4)
    assert torch.allclose(state["bn2.running_var"], model.bn2.running_var * variance / dense_variance, rtol=1e-3)
    assert torch.equal(state["bn1.running_mean"], model.bn1.running_mean[keep])  # nothing changed before it


def test_reestimation_that_is_not_finite_is_a_failed_candidate():
    module = Pruner(tiny_workload()).graph.cut({})
    context = Context(module, lambda: [(torch.full((4, 1, 8, 8), float("inf")),)])
    with pytest.raises(CandidateFailure, match="not finite"):
        COMPENSATIONS["batchnorm"].apply(module, context)
