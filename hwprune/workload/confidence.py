"""What a drop is worth on other examples: by labels, and by how sure the dense model is of the answers that change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from hwprune.records.measurement import Measurement
from hwprune.workload.metrics import METRICS, Metric, class_axis
from hwprune.workload.scoring import Outputs

OFF_BY, OFF_BY_CHANGED = 0.3, 0.05
"""Standard deviation of what a dense model's confidence says of a drop: relative to the drop, and to the share of answers that
changed. Pruning changes answers that dense is unsure of, and there it is right a little more or less often than it thinks: less
on SST-2 with MiniLM, more on CIFAR-10 with a wide CNN. A judgement from these two and the digits demo."""


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
    value, error, changed = expected
    own = (scored.half_width / 1.959964) ** 2
    luck = max(own - error**2, 0.1 * own)  # of the labels, given the examples
    wrong = (OFF_BY * value) ** 2 + (OFF_BY_CHANGED * changed) ** 2
    share = wrong / max(wrong + luck, 1e-300)
    mean = value + share * (scored.value - value)
    half = 1.959964 * math.sqrt(error**2 + share * luck)
    return Measurement(mean, metric.name, mean - half, mean + half, scored.samples)


_BEST = {"top1": 1, "top5": 5}


def _confidence_drop(
    metric: Metric, outputs: Outputs, dense: Outputs, targets: Sequence[Any], temperature: float
) -> tuple[float, float, float] | None:
    """Drop of the probability that the dense model gives to the answers, its standard error, and the share of answers that
    changed; None: there is no such thing.
    """
    differences, changes = [], []
    for batch, reference, target in zip(outputs, dense, targets, strict=True):
        axis = class_axis(metric, reference[0].shape, target)
        if axis is None:
            return None
        belief = (reference[0].double() / temperature).softmax(dim=axis)
        best = min(_BEST[metric.name], reference[0].shape[axis])
        answers = [out.topk(best, dim=axis).indices.sort(dim=axis).values for out in (reference[0], batch[0])]
        theirs, mine = (belief.gather(axis, answer).sum(dim=axis) for answer in answers)
        differences.append((theirs - mine).reshape(len(mine), -1).mean(dim=1))
        changes.append((answers[0] != answers[1]).any(dim=axis).reshape(len(mine), -1).double().mean(dim=1))
    values = torch.cat(differences)
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), error, float(torch.cat(changes).mean())


def confidence_temperature(metric: Metric, dense: Outputs, targets: Sequence[Any]) -> float | None:
    """The temperature of the dense model's outputs at which its confidence fits the labels best (Guo et al. 2017).

    None: the metric is no share of right answers, or targets are no labels of these outputs' classes.
    """
    if metric.name not in _BEST or metric != METRICS[metric.name]:
        return None
    if not all(_labels(metric, batch[0], target) for batch, target in zip(dense, targets, strict=True)):
        return None
    count: int = max(1, sum(target.numel() for target in targets))

    def loss(log_temperature: float) -> float:
        scale = math.exp(log_temperature)
        total: float = 0.0
        for batch, target in zip(dense, targets, strict=True):
            total += float(torch.nn.functional.cross_entropy(batch[0].double() / scale, target.long(), reduction="sum"))
        return total / count

    low, high = math.log(0.05), math.log(20.0)
    golden = (5**0.5 - 1) / 2
    for _ in range(16):  # to 0.3 %; the loss has one minimum
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return math.exp((low + high) / 2)


def _labels(metric: Metric, outputs: torch.Tensor, target: Any) -> bool:
    """Is every target the number of a class of these outputs?"""
    if not isinstance(target, torch.Tensor) or target.is_floating_point() or class_axis(metric, outputs.shape, target) != 1:
        return False
    fits = target.shape == (len(outputs), *outputs.shape[2:])
    return fits and bool(((target >= 0) & (target < outputs.shape[1])).all())
