"""Masks of tickets."""

from __future__ import annotations

import pytest
import torch

from hwprune.recovery.tickets.masks import initial, pruned, random_like


def test_initial_values_are_new_and_repeatable(stripes):
    model, graph = stripes.workload.model, stripes.graph.module
    one, again, other = (initial(model, graph, seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    trained = graph.state_dict()
    for name in ("stem.weight", "fc.weight", "fc.bias"):
        assert not torch.equal(one[name], other[name]) and not torch.equal(one[name], trained[name])
    assert (one["bn.weight"] == 1).all() and (one["bn.running_mean"] == 0).all()


def test_the_smallest_weights_of_all_layers_go(stripes):
    module = stripes.graph.module
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in module.named_parameters() if p.ndim > 1}
    first = pruned(module, masks, 0.5)
    second = pruned(module, first, 0.5)
    total = sum(m.numel() for m in masks.values())
    assert sum(int(m.sum()) for m in first.values()) == total - round(total / 2)
    assert sum(int(m.sum()) for m in second.values()) == pytest.approx(total / 4, abs=2)
    assert all((first[name] | ~second[name]).all() for name in masks)  # nothing comes back
    weights = dict(module.named_parameters())
    stays = torch.cat([weights[n].abs()[m] for n, m in first.items()])
    gone = torch.cat([weights[n].abs()[~m] for n, m in first.items()])
    assert stays.min() >= gone.max()
    shuffled = random_like(second, 7)
    assert all(int(shuffled[n].sum()) == int(second[n].sum()) for n in second)
    assert any(not torch.equal(shuffled[n], second[n]) for n in second)
