"""Labels and confidence together tell more of a drop than labels alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwprune.records.measurement import Measurement
from hwprune.workload import confidence, metrics, scoring


def answered(seed, count=800, noise=0.6, trust=1.0, sharpness=2.0):
    """A dense model whose confidence is right at temperature 2, a candidate with noisy outputs, and the true drop.

    Args:
        trust: how much of what confidence says is true: 0.5 makes changed answers cost half of it.
    """
    draw = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(count, 4, generator=draw)
    belief = (trust * logits.softmax(dim=1) + (1 - trust) * torch.full_like(logits, 0.25)) if trust < 1 else logits.softmax(dim=1)
    labels = torch.multinomial(belief, 1, generator=draw)[:, 0]
    other = logits + noise * sharpness * torch.randn(count, 4, generator=draw)
    rows = torch.arange(count)
    true = float((belief[rows, logits.argmax(1)] - belief[rows, other.argmax(1)]).mean())
    return [(2 * logits,)], [(2 * other,)], [labels], true


def estimates(seed, **more):
    dense, other, labels, true = answered(seed, **more)
    metric = metrics.get("top1")
    scored = scoring.paired_drop(metric, other, dense, labels)
    temperature = confidence.confidence_temperature(metric, dense, labels)
    return scored, confidence.estimated_drop(metric, other, dense, labels, temperature, scored), true


def test_the_temperature_is_found_at_which_confidence_is_right():
    dense, _, labels, _ = answered(0, count=20000)
    assert confidence.confidence_temperature(metrics.get("top1"), dense, labels) == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(("trust", "covered"), [(1.0, 0.93), (0.7, 0.8)])
def test_confidence_tells_a_drop_better_than_labels_do(trust, covered):
    """200 splits of 800 examples: the squared error is less than that of labels alone, and the interval holds what it says; a little
    less where no temperature makes confidence right."""
    found = [estimates(seed, noise=0.4, trust=trust) for seed in range(200)]
    by_labels = np.mean([(scored.value - true) ** 2 for scored, _, true in found])
    together = np.mean([(both.value - true) ** 2 for _, both, true in found])
    assert together < 0.7 * by_labels
    assert np.mean([both.ci_low <= true <= both.ci_high for _, both, true in found]) >= covered
    assert np.mean([both.half_width < scored.half_width for scored, both, _ in found]) == 1.0


def test_labels_win_where_there_are_enough_of_them():
    """Confidence that is wrong about changed answers is corrected by a hundred thousand labels."""
    draw = torch.Generator().manual_seed(0)
    dense, other, _, _ = answered(1, count=100_000)
    labels = [torch.randint(4, (100_000,), generator=draw)]  # nothing is lost by changing an answer
    metric = metrics.get("top1")
    scored = scoring.paired_drop(metric, other, dense, labels)
    wrong = confidence.estimated_drop(metric, other, dense, labels, 2.0, scored)
    blind = confidence._confidence_drop(metric, other, dense, labels, 2.0)
    assert abs(wrong.value - scored.value) < 0.1 * abs(blind[0] - scored.value)


def test_five_best_answers_and_positions():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 9, 3, generator=draw)
    other = logits.roll(1, dims=1)
    value, _, changed = confidence._confidence_drop(metrics.get("top5"), [(other,)], [(logits,)], [torch.zeros(6, 3).long()], 1.0)
    belief = logits.softmax(dim=1)
    by_hand = [
        float(belief[n, logits[n, :, i].topk(5).indices, i].sum() - belief[n, other[n, :, i].topk(5).indices, i].sum())
        for n in range(6)
        for i in range(3)
    ]
    assert value == pytest.approx(np.mean(by_hand))
    best = [[set(out[n, :, i].topk(5).indices.tolist()) for out in (logits, other)] for n in range(6) for i in range(3)]
    assert changed == pytest.approx(np.mean([mine != theirs for theirs, mine in best]))


@pytest.mark.parametrize("metric", ["agreement", "psnr", metrics.Metric("top1", lambda outputs, targets: outputs[:, 0])])
def test_other_metrics_have_labels_alone(metric):
    dense, other, labels, _ = answered(0, count=50)
    metric = metrics.get(metric)
    assert confidence.confidence_temperature(metric, dense, labels) is None
    scored = Measurement(0.1, metric.name, 0.0, 0.2, 50)
    assert confidence.estimated_drop(metric, other, dense, labels, None, scored) is scored


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.rand(6, 1), torch.full((6,), 3)),  # one column: a binary decision
        (torch.rand(6, 5, 3), torch.zeros(6, 4).long()),
        (torch.rand(6, 3), torch.tensor([0, 1, 2, 0, 1, 255])),  # a label that stands for nothing
        (torch.rand(6, 3), torch.tensor([0, 1, 2, 0, 1, -100])),
        (torch.rand(6, 3), torch.rand(6, 3)),  # soft labels
        (torch.rand(6, 3), None),
    ],
)
def test_targets_that_are_no_labels_of_the_outputs_classes_leave_confidence_out(outputs, targets):
    assert confidence.confidence_temperature(metrics.get("top1"), [(outputs,)], [targets]) is None


def test_labels_of_any_whole_type_will_do():
    dense, _, (labels,), _ = answered(0, count=200)
    kinds = [
        confidence.confidence_temperature(metrics.get("top1"), dense, [labels.to(kind)]) for kind in (torch.int32, torch.uint8)
    ]
    assert kinds == [confidence.confidence_temperature(metrics.get("top1"), dense, [labels])] * 2
