"""Heads of early exits: they find a linear rule, and are unsure where the whole model is."""

from __future__ import annotations

import numpy as np
import torch

from hwprune.deploy import exit_heads


def _data(count=1500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 12, generator=generator) * torch.logspace(-2, 2, 12) + 5
    rule = torch.randn(3, 12, generator=torch.Generator().manual_seed(9)) / torch.logspace(-2, 2, 12)
    return x, ((x - 5) @ rule.T).softmax(dim=1)


def test_a_linear_rule_is_found_whatever_the_features_scales():
    x, taught = _data()
    weight, bias = exit_heads.fit(x, taught, None)
    other, wanted = _data(seed=1)
    found = torch.from_numpy(other.numpy() @ weight.T + bias).softmax(dim=1)
    assert weight.shape == (3, 12) and bias.shape == (1, 3) and weight.dtype == np.float32
    assert (found - wanted).abs().mean() < 0.02


def test_labels_and_the_model_are_both_listened_to():
    x, taught = _data()
    labels = taught.argmax(dim=1)
    sharp = exit_heads.fit(x, taught, labels)
    soft = exit_heads.fit(x, taught, None)
    scores = [torch.from_numpy(x.numpy() @ w.T + b).softmax(dim=1).amax(dim=1).mean() for w, b in (sharp, soft)]
    assert scores[0] > scores[1] + 0.02


def test_noise_is_not_learned_by_heart():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, 100, generator=generator)
    labels = torch.randint(0, 2, (150,), generator=generator)
    weight, bias = exit_heads.fit(x, torch.full((150, 2), 0.5), labels)
    fresh = torch.randn(500, 100, generator=generator)
    sure = torch.from_numpy(fresh.numpy() @ weight.T + bias).softmax(dim=1).amax(dim=1)
    assert sure.mean() < 0.75
