"""PLATON against its formula."""

from __future__ import annotations

import torch

from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.recovery.plan import Plan
from hwprune.recovery.sparsifiers.platon import Platon
from tests.recovery.helpers import private


def test_platon_is_sensitivity_times_uncertainty(stripes):
    own = private(stripes)
    decider = Platon(own, Recipe((UnitChoice("outer.weight", "unstructured", 0.5, "l1"),), "none"), Plan("gradual", 1))
    weight = dict(own.graph.module.named_parameters())["outer.weight"]
    optimizer = torch.optim.AdamW([weight])
    mean = uncertain = torch.zeros_like(weight)
    for seed in range(3):
        with torch.no_grad():
            weight.normal_(generator=torch.Generator().manual_seed(10 + seed))  # as an optimizer's step leaves them
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        now = (weight.detach() * weight.grad).abs()
        decider.after_step(own.graph.module, optimizer, (seed + 1) / 4)
        mean = 0.85 * mean + 0.15 * now
        uncertain = 0.95 * uncertain + 0.05 * (now - mean).abs()
    assert torch.allclose(decider.scores["outer.weight"], mean * uncertain, atol=1e-6)
    assert 0.4 < float((weight == 0).float().mean()) <= 0.5


def test_a_masked_weight_moves_by_one_learning_rate_a_step(stripes):
    """What Adam does with a steady gradient; its moments are those of training without masks. At the end nothing is left."""
    own = private(stripes)
    plan = Plan("gradual", 1, updates=100)
    decider = Platon(own, Recipe((UnitChoice("outer.weight", "unstructured", 0.5, "l1"),), "none"), plan)
    weight = dict(own.graph.module.named_parameters())["outer.weight"]
    optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.0)
    weight.grad = torch.full_like(weight, 0.3)
    for step in range(400):
        before = weight.detach().clone()
        optimizer.step()
        moved = (weight.detach() - before).abs()[before == 0]
        decider.after_step(own.graph.module, optimizer, 0.5 + step / 1000)
    assert len(moved) > 0
    assert torch.allclose(moved, torch.full_like(moved, 1e-3), rtol=0.02)
    decider.after_step(own.graph.module, optimizer, 1.0)
    gone = weight.detach() == 0
    assert 0.4 < float(gone.float().mean()) <= 0.5
    assert not optimizer.state[weight]["exp_avg"][gone].any()
