"""What a training starts from and what it begins anew with."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from hwprune.pruning.pruner import Pruner
from hwprune.recovery.loop import batch_norms
from hwprune.recovery.loop.run import train
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import MASK_LEARNERS, recover
from hwprune.workload.workload import first_tensor
from tests.recovery.conftest import batches
from tests.recovery.helpers import HALF, coarse_gates, masked, private


def test_a_last_batch_of_one_example_spoils_no_batch_norm(stripes):
    images, labels = batches(65, 7, 65)[0]
    train_data = list(zip(images.split(32), labels.split(32), strict=True))
    assert len(train_data[-1][1]) == 1
    pruner = Pruner(dataclasses.replace(stripes.workload, train=train_data))
    for kind in ("finetune", "distill"):
        made = recover(pruner, masked(pruner, 0.5), Plan(kind, 3, rate=1e-3))
        assert made.outcome.restarts == 0
        assert all(bool(torch.isfinite(value).all()) for value in made.candidate.module.state_dict().values())


def test_frozen_batch_norms_are_the_same_model_with_constant_statistics(stripes):
    module = copy.deepcopy(stripes.graph.module)
    still = batch_norms.frozen(module)
    assert batch_norms.has_any(module) and dict(still.named_parameters())["fc.weight"] is module.fc.weight
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(first_tensor(still.eval()(x)), module.eval()(x))
        before = module.bn.running_mean.clone()
        still.train()(x)
    assert torch.equal(module.bn.running_mean, before)


@pytest.mark.parametrize("decider", [*sorted(MASK_LEARNERS), "gates"])
def test_training_that_begins_anew_knows_nothing_of_the_first_try(stripes, decider):
    """One batch late in the run gives NaN; what follows is what a run with the smaller rate would have been."""
    how = coarse_gates if decider == "gates" else MASK_LEARNERS[decider]

    def run(rate, bad):
        own = private(stripes)
        calls = 0

        def loss(out, y):
            nonlocal calls
            calls += 1
            return nn.functional.cross_entropy(out, y) * (math.nan if calls == bad else 1.0)

        plan = Plan("gradual", 2, rate=rate, updates=8, task=1.0)
        made = how(own, HALF, plan)
        workload = dataclasses.replace(stripes.workload, loss=loss)
        outcome = train(own.graph.module, workload, plan, sparsifier=made, keep_best=False)
        return outcome, own.graph.module.state_dict()

    first, state = run(0.008, 14)
    second, expected = run(0.002, 0)
    assert first.restarts == 1 and second.restarts == 0
    assert all(torch.allclose(value, expected[name], atol=1e-6) for name, value in state.items())
