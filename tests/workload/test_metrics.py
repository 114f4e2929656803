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


def test_the_drop_is_compared_example_by_example():
    """Two models that agree on nearly everything: the interval of their difference is far narrower than either score's."""
    metric = metrics.METRICS["top1"]
    dense = torch.ones(1000)
    dense[:200] = 0
    other = dense.clone()
    other[200:210] = 0
    found = metric.paired_drop(dense, other)
    assert found.value == pytest.approx(0.01)
    assert found.ci_low < 0.01 < found.ci_high
    assert found.ci_high - found.ci_low < 0.4 * (metric.reduce(other).ci_high - metric.reduce(other).ci_low)


def test_no_disagreement_is_not_taken_for_certainty():
    found = metrics.METRICS["top1"].paired_drop(torch.ones(100), torch.ones(100))
    assert found.value == 0
    assert found.ci_high == pytest.approx(1.96 * (2 / 102) ** 0.5 / 102**0.5, rel=0.01)  # Bonett and Price, by hand


@pytest.mark.parametrize("kind", ["answers", "numbers", "perplexity"])
def test_paired_intervals_hold_the_true_drop(kind):
    draw = torch.Generator().manual_seed(0)
    metric = {
        "answers": metrics.METRICS["top1"],
        "numbers": metrics.METRICS["psnr"],
        "perplexity": metrics.METRICS["perplexity"],
    }[kind]
    population = 40_000
    common = torch.rand(population, generator=draw)
    weights = None
    if kind == "answers":
        dense, other = (common < 0.9).float(), ((common + 0.06 * (torch.rand(population, generator=draw) - 0.3)) < 0.9).float()
    else:
        dense = 1 + common
        other = dense + 0.1 + 0.3 * torch.randn(population, generator=draw)
        weights = torch.randint(1, 9, (population,), generator=draw) if kind == "perplexity" else None
    truth = metric.paired_drop(dense, other, weights).value
    held = 0
    for _ in range(300):
        picked = torch.randint(population, (400,), generator=draw)
        found = metric.paired_drop(dense[picked], other[picked], None if weights is None else weights[picked])
        held += found.ci_low <= truth <= found.ci_high
    assert 0.91 <= held / 300 <= 0.99


@pytest.mark.parametrize("axis", [1, 2])
def test_positions_that_do_not_count_are_left_out(axis):
    """Labels of -100, as token taggers' data have them for padding: (examples, positions) with 2 of 3, 1 of 1 and 1 of 2 right."""
    answers = torch.tensor([[0, 1, 2, 0], [3, 0, 0, 0], [1, 1, 0, 0]])
    labels = torch.tensor([[0, 1, 0, -100], [3, -100, -100, -100], [1, 0, -100, -100]])
    outputs = torch.nn.functional.one_hot(answers, 5).float()
    outputs = outputs if axis == 2 else outputs.movedim(2, 1)
    assert metrics.top1(outputs, labels).tolist() == pytest.approx([2 / 3, 1.0, 0.5])
    assert metrics.top5(outputs, labels).tolist() == pytest.approx([1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="no label but -100"):
        metrics.top1(outputs, torch.full_like(labels, -100))
