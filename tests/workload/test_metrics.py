"""Metrics against values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hwprune.errors import UnknownNameError
from hwprune.workload import metrics


def test_metrics_by_hand():
    logits = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1]])
    assert metrics.top1(logits, torch.tensor([1, 2])).tolist() == [1.0, 0.0]
    assert metrics.top5(logits, torch.tensor([1, 2])).tolist() == [1.0, 1.0]
    dense = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 1.0]])
    assert metrics.agreement(logits, dense).tolist() == [1.0, 0.0]
    assert metrics.psnr(torch.full((1, 4), 0.5), torch.full((1, 4), 0.4)).item() == pytest.approx(20.0, abs=1e-4)
    uniform = metrics.negative_log_likelihood(torch.zeros(2, 3, 7), torch.tensor([[1, 2, -100], [0, -100, -100]]))
    assert uniform.tolist() == pytest.approx([math.log(7)] * 2)
    assert metrics.get("perplexity").reduce(uniform).value == pytest.approx(7.0)


def test_drop_is_positive_when_worse():
    assert metrics.get("top1").drop(0.9, 0.8) == pytest.approx(0.1)
    assert metrics.get("perplexity").drop(10.0, 12.0) == pytest.approx(2.0)


def test_unknown_metric_lists_the_choices():
    with pytest.raises(UnknownNameError, match="top1"):
        metrics.get("top11")
