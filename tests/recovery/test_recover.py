"""Candidates that are trained by loops of the user's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hwprune.errors import CandidateFailure, UsageError
from hwprune.pruning.pruner import Pruner
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import prune_gradually, recover
from tests.recovery.helpers import HALF, Enough, masked


def test_a_loop_of_the_users_own(stripes):
    candidate = masked(stripes, 0.8)

    def fit(module):
        module.train()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        for images, labels in stripes.workload.train * 3:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()
            optimizer.step()

    made = recover(stripes, candidate, fit=fit)
    assert made.outcome.after.value > made.outcome.before.value
    for name, mask in candidate.masks.items():
        assert (dict(made.candidate.module.named_parameters())[name][~mask] == 0).all()
    with pytest.raises(CandidateFailure, match="ZeroDivisionError"):
        recover(stripes, candidate, fit=lambda module: 1 / 0)
    ruined = recover(stripes, candidate, fit=lambda module: nn.init.zeros_(module.fc.weight))
    assert ruined.outcome.best_step == 0 and (ruined.candidate.module.fc.weight != 0).any()


def test_a_gradual_run_that_was_stopped_while_it_settled_does_not_rise_again(stripes, tmp_path):
    plan = Plan("gradual", 4, checkpoint_s=0, checks=100, updates=8, rate=0.002)
    seen = []

    def stop(done, total, left, best):
        seen.append((done, total))
        if total == 13 and done == 6:
            raise Enough

    with pytest.raises(Enough):
        prune_gradually(stripes, HALF, plan, folder=tmp_path, report=stop)
    seen.clear()
    prune_gradually(stripes, HALF, plan, folder=tmp_path, report=lambda *told: seen.append(told[:2]))
    assert seen[0] == (6, 13)


def test_all_epochs_may_be_spent_while_sparsity_rises(stripes):
    made = prune_gradually(stripes, HALF, Plan("gradual", 1, settle=0.0, rate=0.002))
    assert made.outcome.steps == 0 and made.deciding.steps == 8 and made.candidate.recipe.choices[0].sparsity == 0.5


def test_a_candidate_of_another_model_is_refused(stripes):
    from tests.recovery.conftest import make

    other = Pruner(make(width=12))
    with pytest.raises(UsageError, match="another model"):
        recover(stripes, masked(other, 0.5))


def test_a_loop_may_leave_the_model_in_another_precision(stripes):
    made = recover(stripes, masked(stripes, 0.5), fit=lambda module: module.double())
    assert all(p.dtype == torch.float32 for p in made.candidate.module.parameters())


def test_masks_are_held_inside_a_loop_of_the_users_own(stripes):
    """Adam revives weights in each step; what is trained has to be the masked network all the same."""
    candidate = masked(stripes, 0.8)

    def fit(module):
        module.train()
        optimizer = torch.optim.Adam(module.parameters(), lr=0.005)
        for images, labels in stripes.workload.train * 4:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(images), labels).backward()
            optimizer.step()

    made = recover(stripes, candidate, fit=fit)
    planned = recover(stripes, candidate, Plan("finetune", 4, rate=0.005))
    assert made.outcome.after.value > made.outcome.before.value
    assert made.outcome.after.value > (planned.outcome.after.value + made.outcome.before.value) / 2
    assert not made.candidate.module._forward_pre_hooks
    with pytest.raises(UsageError, match="one of them"):
        recover(stripes, candidate, "distill:1", fit=fit)


def test_deciders_and_plans_that_do_not_fit_are_refused(stripes):
    with pytest.raises(UsageError, match="movement"):
        prune_gradually(stripes, HALF, Plan("gradual"), "movment")
    with pytest.raises(UsageError, match="no gradual plan"):
        prune_gradually(stripes, HALF, Plan("finetune", 2), "movement")
