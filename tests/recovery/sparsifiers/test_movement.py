"""Movement pruning against its formula."""

from __future__ import annotations

import pytest
import torch

from hwprune.errors import UsageError
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.movement import Movement
from tests.recovery.helpers import private


def test_movement_scores_are_the_gradient_times_the_weight(stripes):
    """Sanh et al. 2020, equation 3: dL/dS = dL/dW' * W; of a channel, the sum over what makes it."""
    own = private(stripes)
    module = own.graph.module
    images, labels = stripes.workload.train[0]
    for unit, pattern in (("outer.weight", "unstructured"), ("inner.weight:0", "channel")):
        decider = Movement(own, Recipe((UnitChoice(unit, pattern, 0.5, "l1"),), "none"), Plan("gradual", 1))
        replaced = decider.weights(module)
        loss = torch.nn.functional.cross_entropy(torch.func.functional_call(module, replaced, (images,)), labels)
        loss.backward()
        plain = torch.nn.functional.cross_entropy(module(images), labels)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
        names = list(replaced)
        gradients = torch.autograd.grad(plain, [dict(module.named_parameters())[name] for name in names])
        products = [g * dict(module.named_parameters())[name] for g, name in zip(gradients, names, strict=True)]
        expected = products[0] if pattern == "unstructured" else sum(p.reshape(16, -1).sum(dim=1) for p in products)
        assert torch.allclose(decider.scores[unit].grad, expected, atol=1e-5)
        if pattern == "channel":
            assert set(names) == {"inner.weight", "bn2.weight", "bn2.bias"}  # not what reads it


def test_a_masked_weight_may_come_back_in_movement_and_not_in_gradual(stripes):
    own = private(stripes)
    decider = Movement(
        own, Recipe((UnitChoice("outer.weight", "unstructured", 0.5, "l1"),), "none"), Plan("gradual", 1, updates=4)
    )
    score = decider.scores["outer.weight"]
    with torch.no_grad():
        score.copy_(torch.arange(score.numel(), dtype=torch.float32).reshape(score.shape))
    optimizer = torch.optim.SGD(own.graph.module.parameters(), lr=0.1)
    decider.after_step(own.graph.module, optimizer, 0.5)
    first = decider.decision.masks["outer.weight"]
    with torch.no_grad():
        score.copy_(score.max() - score)
    decider.after_step(own.graph.module, optimizer, 1.0)
    assert (decider.decision.masks["outer.weight"] & ~first).any()
    weight = dict(own.graph.module.named_parameters())["outer.weight"]
    assert (weight[~decider.decision.masks["outer.weight"]] == 0).all()
    assert (weight[decider.decision.masks["outer.weight"]] != 0).all()


def test_soft_movement_is_not_for_groups(stripes):
    with pytest.raises(UsageError, match="2:4"):
        Movement(private(stripes), Recipe((UnitChoice("outer.weight", "2:4", 0.5, "l1"),), "none"), Plan("gradual"), soft=True)
