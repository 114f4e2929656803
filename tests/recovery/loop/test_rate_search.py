"""Short trainings that find a rate."""

from __future__ import annotations

import copy

import pytest
import torch

from hwprune.recovery.loop import rates
from hwprune.recovery.loop.run import search_rate
from hwprune.recovery.plan import Plan
from hwprune.recovery.recover import recover
from hwprune.recovery.sparsifiers.base import FixedMask
from tests.recovery.helpers import masked


def test_the_search_for_a_rate_leaves_no_trace_and_is_the_one_that_training_makes(stripes):
    candidate = masked(stripes, 0.8)
    module = copy.deepcopy(candidate.module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    plan = Plan("finetune", 6)
    rate = search_rate(module, stripes.workload, plan, FixedMask(candidate.masks))
    assert torch.equal(torch.rand(1), wanted)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    made = recover(stripes, candidate, plan)
    assert made.outcome.rate == rate
    assert made.outcome.examples > 6 * 256  # the search is counted
    assert recover(stripes, candidate, Plan("finetune", 6, rate=0.002)).outcome.examples == 6 * 256


@pytest.mark.parametrize("little", [True, False])
def test_trials_that_bring_little_are_made_again_longer(stripes, monkeypatch, little):
    asked = []

    def best(loss_of, first, margin):
        assert margin == rates.MARGIN
        asked.append((first, [loss_of(rate) for rate in (0.0, first)]))
        return rates.Found(first / 2, rates.LITTLE + (-0.01 if little else 0.01))

    monkeypatch.setattr(rates, "best", best)
    candidate = masked(stripes, 0.8)
    rate = search_rate(copy.deepcopy(candidate.module), stripes.workload, Plan("finetune", 12), FixedMask(candidate.masks))
    first = asked[0][0]
    # From the rate that the short ones found and from the first one, with four times the steps.
    assert [rate for rate, _ in asked] == ([first, first / 2, first] if little else [first])
    assert rate == asked[min(1, len(asked) - 1)][0] / 2
    if little:
        assert asked[2][1][1] < asked[0][1][1]
