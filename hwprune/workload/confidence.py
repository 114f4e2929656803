"""What a drop is worth on other examples: by labels, and by how sure the dense model is of the answers that change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from hwprune.records.measurement import Measurement
from hwprune.workload.metrics import Metric
from hwprune.workload.reading import CLASSES, DECISIONS, Reading, judged, readings
from hwprune.workload.scoring import Outputs

OFF_BY, OFF_BY_CHANGED = 0.3, 0.1
"""Standard deviation of what a dense model's confidence says of a drop: relative to the drop, and to the share of answers that
changed. Pruning changes answers that dense is unsure of, and there it is right a little more or less often than it thinks, even
where its confidence is right of all answers of one margin: 0.13 of them less on SST-2 with MiniLM, 0.1 to 0.2 more on CIFAR-10
with a wide CNN (``benchmarks/told_drops.py``)."""


def estimated_drop(
    metric: Metric, outputs: Outputs, dense: Outputs, targets: Sequence[Any], temperature: float | None, scored: Measurement
) -> Measurement:
    """The best estimate of the drop on examples that nobody has seen, with a 95 % interval.

    Labels say little of a small difference: a few lucky ones among the answers that changed decide, and they are the same for all
    candidates. How probable the dense model holds the answers that changed says much more (the difference of confidences,
    Guillory et al. 2021), as far as it can be trusted: each weighs by its variance.

    Args:
        temperature: at which the dense model's confidence fits the labels, see `confidence_temperature`; None: it has none.
        scored: the drop by labels, see `paired_drop`.
    """
    expected = None if temperature is None else _confidence_drop(metric, outputs, dense, targets, temperature)
    if expected is None:
        return scored
    value, error, _ = expected
    own = (scored.half_width / 1.959964) ** 2
    luck = max(own - error**2, 0.1 * own)  # of the labels, given the examples
    share = _label_share(expected, scored)
    mean = value + share * (scored.value - value)
    half = 1.959964 * math.sqrt(error**2 + share * luck)
    return Measurement(mean, metric.name, mean - half, mean + half, scored.samples)


def _label_share(expected: tuple[float, float, float], scored: Measurement) -> float:
    """The weight of the labels beside what the dense model's confidence says, from the variances of both."""
    value, error, changed = expected
    own = (scored.half_width / 1.959964) ** 2
    luck = max(own - error**2, 0.1 * own)
    wrong = (OFF_BY * value) ** 2 + (OFF_BY_CHANGED * changed) ** 2
    return wrong / max(wrong + luck, 1e-300)


def label_share(
    metric: Metric, outputs: Outputs, dense: Outputs, targets: Sequence[Any], temperature: float | None, scored: Measurement
) -> float:
    """How far labels count in `estimated_drop`; 1 where the dense model's confidence says nothing."""
    expected = None if temperature is None else _confidence_drop(metric, outputs, dense, targets, temperature)
    return 1.0 if expected is None else _label_share(expected, scored)


def beliefs(
    metric: Metric, outputs: Outputs, dense: Outputs, targets: Sequence[Any], temperature: float | None
) -> torch.Tensor | None:
    """How probable the dense model holds each example's answers, a mean over positions; None: its confidence says nothing."""
    reading = _answers(metric, dense, targets)
    if reading is None or temperature is None:
        return None
    found = []
    for batch, reference in zip(outputs, dense, strict=True):
        theirs, mine = (reading.class_scores(tensors[reading.place]) for tensors in (reference, batch))
        assert theirs is not None and mine is not None
        answers = mine.topk(min(_BEST[metric.name], mine.shape[1]), dim=1).indices
        held = (theirs.double() / temperature).softmax(dim=1).gather(1, answers).sum(dim=1)
        found.append(held.reshape(len(held), -1).mean(dim=1))
    return torch.cat(found)


_BEST = {"top1": 1, "top5": 5}


def _confidence_drop(
    metric: Metric, outputs: Outputs, dense: Outputs, targets: Sequence[Any], temperature: float
) -> tuple[float, float, float] | None:
    """Drop of the probability that the dense model gives to the answers, its standard error, and the share of answers that
    changed; None: there is no such thing.
    """
    differences, changes = [], []
    reading = _answers(metric, dense, targets)
    if reading is None:
        return None
    for batch, reference in zip(outputs, dense, strict=True):
        theirs, mine = (reading.class_scores(tensors[reading.place]) for tensors in (reference, batch))
        assert theirs is not None and mine is not None
        belief = (theirs.double() / temperature).softmax(dim=1)
        best = min(_BEST[metric.name], theirs.shape[1])
        answers = [out.topk(best, dim=1).indices.sort(dim=1).values for out in (theirs, mine)]
        before, after = (belief.gather(1, answer).sum(dim=1) for answer in answers)
        differences.append((before - after).reshape(len(after), -1).mean(dim=1))
        changes.append((answers[0] != answers[1]).any(dim=1).reshape(len(after), -1).double().mean(dim=1))
    values = torch.cat(differences)
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), error, float(torch.cat(changes).mean())


def confidence_temperature(metric: Metric, dense: Outputs, targets: Sequence[Any]) -> float | None:
    """The temperature of the dense model's outputs at which its confidence fits the labels best (Guo et al. 2017).

    None: the metric is no share of right answers, or targets are no labels of these outputs' classes.
    """
    if metric.name not in _BEST or not metric.reads:
        return None
    reading = _answers(metric, dense, targets)
    if reading is None:
        return None
    pairs = []
    for batch, target in zip(dense, targets, strict=True):
        labels = _labels(reading, batch[reading.place], target)
        if labels is None:
            return None
        scores = reading.class_scores(batch[reading.place])
        assert scores is not None
        pairs.append((scores.double(), labels))
    count: int = max(1, sum(labels.numel() for _, labels in pairs))

    def loss(log_temperature: float) -> float:
        scale = math.exp(log_temperature)
        total: float = 0.0
        for scores, labels in pairs:
            total += float(torch.nn.functional.cross_entropy(scores / scale, labels, reduction="sum"))
        return total / count

    low, high = math.log(0.05), math.log(20.0)
    golden = (5**0.5 - 1) / 2
    for _ in range(16):  # to 0.3 %; the loss has one minimum
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2)


def _answers(metric: Metric, dense: Outputs, targets: Sequence[Any]) -> Reading | None:
    """How the output that the metric looks at is read; None: it holds no scores of classes, and no decisions."""
    if metric.name not in _BEST or not metric.reads:
        return None
    found = judged(metric, readings(metric, dense, targets), dense, targets)
    return found[0] if found and found[0].kind in (CLASSES, DECISIONS) else None


def _labels(reading: Reading, output: torch.Tensor, target: Any) -> torch.Tensor | None:
    """The numbers of classes of these outputs that the targets are; None: they are not."""
    if not isinstance(target, torch.Tensor) or (target.is_floating_point() and reading.kind != DECISIONS):
        return None
    scores = reading.class_scores(output)
    assert scores is not None
    labels = reading.labels(target, output).long()
    fits = labels.shape == (len(scores), *scores.shape[2:])
    return labels if fits and bool(((labels >= 0) & (labels < scores.shape[1])).all()) else None
