"""Masks that are held while a model is trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hwprune.errors import RunError
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import recover
from hwprune.recovery.sparsifiers.base import FixedMask
from tests.recovery.conftest import batches
from tests.recovery.helpers import masked


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_not_one_removed_weight_comes_back(stripes, optimizer):
    candidate = masked(stripes)
    made = recover(stripes, candidate, Plan("finetune", 2, optimizer=optimizer, average=0.9, decay=0.1))
    for name, mask in candidate.masks.items():
        weight = dict(made.candidate.module.named_parameters())[name]
        assert (weight[~mask] == 0).all()
        assert not torch.equal(weight, dict(candidate.module.named_parameters())[name])


def test_masks_are_held_on_gradients_state_and_averages_too(stripes):
    module = copy.deepcopy(masked(stripes).module)
    held = FixedMask(masked(stripes).masks)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    for images, labels in batches(64, 5):
        nn.functional.cross_entropy(module(images), labels).backward()
        held.before_step(module)
        optimizer.step()
        held.hold(module, optimizer)
    for name, mask in held.masks.items():
        parameter = dict(module.named_parameters())[name]
        assert (parameter.grad[~mask] == 0).all()
        assert (optimizer.state[parameter]["exp_avg"][~mask] == 0).all()
        assert (optimizer.state[parameter]["exp_avg_sq"][~mask] == 0).all()
    held.check(module)
    with torch.no_grad():
        name, mask = next(iter(held.masks.items()))
        dict(module.named_parameters())[name][~mask] = 1e-9
    with pytest.raises(RunError, match="revived"):
        held.check(module)
