"""Intervals and divergences."""

from __future__ import annotations

import pytest
import torch

from hwprune.workload import metrics, scoring


def test_wilson_interval_by_hand():
    """p = 0.5, n = 100: centre (0.5 + z^2/200) / (1 + z^2/100), half z/(1 + z^2/100) sqrt(0.0025 + z^2/40000)."""
    low, high = metrics.wilson(0.5, 100)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert metrics.wilson(0.0, 10)[0] == 0.0
    assert metrics.wilson(1.0, 10)[1] == 1.0


def test_divergence_by_what_the_outputs_are():
    """KL for scores of classes, masked positions left out; a share of the variance for everything else."""
    draw = torch.Generator().manual_seed(0)
    dense, found = torch.randn(8, 5, generator=draw), torch.randn(8, 5, generator=draw)
    labels = torch.arange(8) % 5

    def of(metric, a, b, target):
        return scoring.divergence(metrics.get(metric), [(a,)], [(b,)], [target])

    kl = float(torch.nn.functional.kl_div(found.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean"))
    assert of("top1", found, dense, labels).value == pytest.approx(kl, rel=1e-5)
    assert of("top1", dense, dense, labels).value == 0
    own = lambda outputs, targets: (outputs - targets).abs().mean(1)  # noqa: E731
    mse = float((found - dense).square().mean() / dense.var(unbiased=False))
    assert of(own, found, dense, dense.clone()).value == pytest.approx(mse, rel=1e-5)
    assert of(own, found, dense, labels).unit == "nats"  # a whole number an example: classes
    single = of(own, found[:, :1], dense[:, :1], labels)
    assert single.unit == "variance" and single.value > 0.1
    words, told = torch.randn(2, 3, 7, generator=draw), torch.randn(2, 3, 7, generator=draw)
    targets = torch.tensor([[1, 2, -100], [3, -100, -100]])
    each = (words.softmax(-1) * (words.log_softmax(-1) - told.log_softmax(-1))).sum(-1)
    wanted = float((each[0, :2].mean() + each[1, :1].mean()) / 2)
    assert of("perplexity", told, words, targets).value == pytest.approx(wanted, rel=1e-5)
