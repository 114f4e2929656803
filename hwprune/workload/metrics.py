"""Metrics: one score an example, a reduction, a direction.

One file because a metric's name, its scores and how they are reduced are looked up together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from hwprune.errors import UnknownNameError, UsageError
from hwprune.records.measurement import Measurement
from hwprune.workload.reading import CLASSES, VALUES, Axis, Reading, first_answer, of_batch, parse_axes
from hwprune.workload.set_values import FunctionOfSet, SetValue, TorchMetric

Scores = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True)
class Metric:
    """How outputs are judged.

    Attributes:
        scores: ``scores(outputs, targets)`` -> 1-D tensor, one score an example of the batch.
        higher_is_better: direction of the reduced value.
        exp: the value is exp(mean score) instead of the mean score (perplexity from negative log-likelihoods).
        whole: ``outputs`` is the tuple of all output tensors instead of the first one with an entry for each example.
        agreement: targets are the dense model's outputs instead of the labels.
        weights: ``weights(outputs, targets)`` -> 1-D tensor, how much each example counts; None: all alike.
        reads: ``scores`` and ``weights`` take how the output is read (`hwprune.workload.reading.Reading`) as a third argument,
            and outputs are chosen by what labels fit. True of hwprune's own.
        class_axis: what the user says of the dims that hold classes, see `hwprune.workload.reading.parse_axes`.
        over_set: the metric is one number of a whole split, no mean over examples (mAP, F1, AUROC); ``scores`` is not used then.
        post: what makes of the outputs (of the first, or with ``whole`` of the tuple) what ``scores`` takes, such as decoding and
            non-maximum suppression; of an agreement metric, of the dense model's outputs too.
        divergence: ``divergence(outputs, dense_outputs)`` -> 1-D tensor, how far each example's outputs (all of them, without
            ``post``) are from the dense model's; it guides the search. None: see `hwprune.workload.scoring.divergence`.
    """

    name: str
    scores: Scores
    higher_is_better: bool = True
    exp: bool = False
    whole: bool = False
    agreement: bool = False
    weights: Scores | None = None
    reads: bool = False
    class_axis: tuple[Axis, ...] = ()
    over_set: SetValue | None = None
    post: Callable[[Any], Any] | None = None
    divergence: Scores | None = None

    @classmethod
    def of_set(
        cls, name: str, function: Callable[[list[Any], list[Any]], Any], *, higher_is_better: bool = True, whole: bool = False,
        agreement: bool = False, post: Callable[[Any], Any] | None = None, divergence: Scores | None = None,
    ) -> Metric:  # fmt: skip
        """A metric of a whole split: ``function(outputs, targets)`` -> one number, from lists with an entry for each part of it.

        Parts are batches, or pieces of batches: the interval comes from leaving out a part of the split at a time.
        """
        return cls(
            name, by_example, higher_is_better, whole=whole, agreement=agreement, over_set=FunctionOfSet(function), post=post,
            divergence=divergence,
        )  # fmt: skip

    @classmethod
    def of_torchmetrics(
        cls, metric: Any, *, result: str | None = None, name: str | None = None, higher_is_better: bool | None = None,
        whole: bool = False, post: Callable[[Any], Any] | None = None, divergence: Scores | None = None,
    ) -> Metric:  # fmt: skip
        """A metric of the package torchmetrics: an object with ``update(outputs, targets)`` and ``compute()``.

        Args:
            result: which value counts, where ``compute`` gives a dict (``map_50``).
            name: for reports; default: ``result``, or the class's name in small letters.
            higher_is_better: default: as the object says.

        Raises:
            UsageError: the object does not say which direction is better.
        """
        known = getattr(metric, "higher_is_better", None) if higher_is_better is None else higher_is_better
        named = name or result or type(metric).__name__.lower()
        if known is None:
            raise UsageError(f"{named} does not say whether more is better: pass higher_is_better=True or False")
        return cls(
            named, by_example, bool(known), whole=whole, over_set=TorchMetric(metric, result), post=post, divergence=divergence
        )

    def seen(self, batch: Any) -> Any:
        """What ``scores`` takes of a batch, a tuple of all outputs: the first answer or all of them, after ``post``."""
        output = batch if self.whole else batch[first_answer(batch)]
        return output if self.post is None else self.post(output)

    def reduce(self, scores: torch.Tensor, weights: torch.Tensor | None = None) -> Measurement:
        """The mean over all examples with a 95 % interval: Wilson's for scores that are 0 or 1, else normal.

        Args:
            weights: how much each example counts, at least 0; None: all alike. Examples of weight 0 are no samples.

        Raises:
            OverflowError: exp of the mean, or of its interval, is no finite number.
            ZeroDivisionError: all weights are 0.
        """
        values = scores.double()
        n = len(values) if weights is None else int((weights > 0).sum())
        if weights is None:
            mean, error = float(values.mean()), float(values.std()) / math.sqrt(n) if n > 1 else 0.0
        else:
            mean, error = _ratio(values, weights.double(), n)
        if weights is None and bool(((values == 0) | (values == 1)).all()):
            low, high = wilson(mean, n)
        else:
            low, high = mean - 1.96 * error, mean + 1.96 * error
        if self.exp:
            mean, low, high = math.exp(mean), math.exp(low), math.exp(high)
        return Measurement(mean, self.name, low, high, n)

    def drop(self, dense: float, value: float) -> float:
        """Positive when ``value`` is worse than ``dense``."""
        return dense - value if self.higher_is_better else value - dense

    def paired_drop(self, dense: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor | None = None) -> Measurement:
        """The drop over the same examples with a 95 % interval.

        Scores that are 0 or 1: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions
        based on paired data", which counts one more example of each kind of disagreement, so that no disagreement at all is not
        taken for certainty. Else the normal interval of the differences; of ``exp`` metrics to first order.

        Args:
            dense, scores: one score an example, of the dense model and of the candidate.
            weights: see `reduce`.
        """
        before, after = dense.double(), scores.double()
        sign = 1.0 if self.higher_is_better else -1.0
        before_value, after_value = self.reduce(before, weights).value, self.reduce(after, weights).value
        value = self.drop(before_value, after_value)
        n = len(after) if weights is None else int((weights > 0).sum())
        if weights is None and bool((((after == 0) | (after == 1)) & ((before == 0) | (before == 1))).all()):
            lost, won = float(((before - after) * sign > 0).sum()), float(((before - after) * sign < 0).sum())
            p, q = (lost + 1) / (n + 2), (won + 1) / (n + 2)
            centre, error = p - q, math.sqrt(max(p + q - (p - q) ** 2, 0.0) / (n + 2))
        else:
            slopes = (before_value, after_value) if self.exp else (1.0, 1.0)
            w = torch.ones_like(after) if weights is None else weights.double()
            influence = w * (
                slopes[0] * (before - (w * before).sum() / w.sum()) - slopes[1] * (after - (w * after).sum() / w.sum())
            )
            centre = value
            error = float(influence.square().sum().sqrt()) / float(w.sum()) * math.sqrt(n / (n - 1)) if n > 1 else 0.0
        low, high = min(centre - 1.959964 * error, value), max(centre + 1.959964 * error, value)
        return Measurement(value, self.name, low, high, n)


def _ratio(values: torch.Tensor, weights: torch.Tensor, n: int) -> tuple[float, float]:
    """The weighted mean of ``n`` examples and its standard error.

    It is a ratio of two sums that both depend on the examples that were drawn (Cochran 1977, equation 2.45).
    """
    total = float(weights.sum())
    mean = float((weights * values).sum()) / total
    squares = float((weights * (values - mean)).square().sum())
    return mean, math.sqrt(squares * n / (n - 1)) / total if n > 1 else 0.0


def wilson(p: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval for a proportion ``p`` of ``n`` (Wilson 1927)."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def by_example(_: Any, __: Any) -> torch.Tensor:
    """Scores of a metric that has none by example. Raises `TypeError`."""
    raise TypeError("this metric is one number of a whole split, and has no score for each example")


IGNORED = -100
"""The label of positions that don't count, as in PyTorch's losses."""


def _per_example(values: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
    """The mean over the positions of each example; positions whose label is `IGNORED` don't count."""
    flat = values.float().reshape(len(values), -1)
    if labels is None or labels.ndim < 2 or not bool((labels == IGNORED).any()):
        return flat.mean(dim=1)
    counted = (labels != IGNORED).reshape(len(values), -1)
    if not bool(counted.any(dim=1).all()):
        raise ValueError(f"an example has no label but {IGNORED}: leave such examples out")
    return (flat * counted).sum(dim=1) / counted.sum(dim=1)


def top1(outputs: torch.Tensor, targets: torch.Tensor, reading: Reading | None = None) -> torch.Tensor:
    """1 where the answer is the target; averaged over positions if there are any, without those whose target is -100.

    The answer is the class of the largest output, or of single numbers yes (1) and no (0).

    Args:
        reading: how the output is read; default: as the targets' shape says.

    Raises:
        ValueError: targets are no answers to such outputs.
    """
    how = reading or of_batch(outputs, targets)
    if how.kind == VALUES:
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} are no classes of outputs of shape {tuple(outputs.shape)}; numbers are "
            "judged by mae, mse or r2"
        )
    labels = how.labels(targets, outputs)
    return _per_example(how.answers(outputs) == labels, labels)


def top5(outputs: torch.Tensor, targets: torch.Tensor, reading: Reading | None = None) -> torch.Tensor:
    """1 where the target is among the five largest outputs along the classes' dim.

    Args:
        reading: as of `top1`.

    Raises:
        ValueError: outputs are no scores of classes.
    """
    how = reading or of_batch(outputs, targets)
    if how.kind != CLASSES:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} are no scores of classes")
    assert how.axis is not None
    best = outputs.topk(min(5, outputs.shape[how.axis]), dim=how.axis).indices
    labels = how.labels(targets, outputs)
    return _per_example((best == labels.unsqueeze(how.axis)).any(dim=how.axis), labels)


def negative_log_likelihood(outputs: torch.Tensor, targets: torch.Tensor, reading: Reading | None = None) -> torch.Tensor:
    """Mean over the positions of each example; target -100 is left out.

    Args:
        reading: which dim holds the classes; default: the last one, outputs (batch, positions, classes).
    """
    axis = -1 if reading is None or reading.axis is None else reading.axis
    losses = torch.nn.functional.cross_entropy(outputs.movedim(axis, 1).float(), targets, reduction="none", ignore_index=-100)
    used = (targets != -100).reshape(len(targets), -1)
    return (losses.reshape(len(targets), -1) * used).sum(dim=1) / used.sum(dim=1).clamp(min=1)


def counted_positions(_: torch.Tensor, targets: torch.Tensor, _reading: Reading | None = None) -> torch.Tensor:
    """Positions of each example whose target is not -100: perplexity is of tokens, not of examples."""
    return (targets != -100).reshape(len(targets), -1).sum(dim=1)


def psnr(outputs: torch.Tensor, targets: torch.Tensor, _reading: Reading | None = None) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB for values in [0, 1]."""
    error = _per_example(_difference(outputs, targets).square()).clamp(min=1e-12)
    return -10 * torch.log10(error)


def absolute_error(outputs: torch.Tensor, targets: torch.Tensor, _reading: Reading | None = None) -> torch.Tensor:
    """Mean absolute error of each example, in the outputs' unit."""
    return _per_example(_difference(outputs, targets).abs())


def squared_error(outputs: torch.Tensor, targets: torch.Tensor, _reading: Reading | None = None) -> torch.Tensor:
    """Mean squared error of each example, in the outputs' unit squared."""
    return _per_example(_difference(outputs, targets).square())


def explained(outputs: torch.Tensor, targets: torch.Tensor, reading: Reading | None = None) -> torch.Tensor:
    """1 minus squared error over the targets' variance; the mean is the coefficient of determination.

    Args:
        reading: holds the variance over all examples; default: that of these targets.
    """
    variance = reading.variance if reading is not None else max(float(targets.double().var(unbiased=False)), 1e-30)
    return 1 - squared_error(outputs, targets) / variance


def agreement(outputs: torch.Tensor, dense_outputs: torch.Tensor, reading: Reading | None = None) -> torch.Tensor:
    """How far the answers are the dense model's: needs no labels.

    Of classes and decisions 1 where both answer alike, averaged over positions; of numbers 1 minus the squared difference over
    the dense outputs' variance, at least 0.

    Args:
        reading: how the output is read; default: as these outputs say.

    Raises:
        WorkloadError: nothing says which dim holds the classes.
    """
    how = reading or of_batch(dense_outputs)
    if how.kind == VALUES:
        return 1 - _per_example((outputs.double() - dense_outputs.double()).square() / how.variance).clamp(max=1.0)
    return _per_example(how.answers(outputs) == how.answers(dense_outputs))


def _difference(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """In the outputs' shape, because (N, 1) minus (N,) is every output minus every target.

    Raises:
        ValueError: they don't fit.
    """
    if outputs.numel() != targets.numel():
        raise ValueError(f"outputs have shape {tuple(outputs.shape)}, targets {tuple(targets.shape)}")
    return outputs.float() - targets.float().reshape(outputs.shape)


METRICS: dict[str, Metric] = {
    "top1": Metric("top1", top1, reads=True),
    "top5": Metric("top5", top5, reads=True),
    "perplexity": Metric(
        "perplexity", negative_log_likelihood, higher_is_better=False, exp=True, weights=counted_positions, reads=True
    ),
    "psnr": Metric("psnr", psnr, reads=True),
    "mae": Metric("mae", absolute_error, higher_is_better=False, reads=True),
    "mse": Metric("mse", squared_error, higher_is_better=False, reads=True),
    "r2": Metric("r2", explained, reads=True),
    "agreement": Metric("agreement", agreement, agreement=True, reads=True),
}


def get(metric: str | Metric | Scores) -> Metric:
    """A metric from its name, from a callable (higher is better, mean), from an object of torchmetrics, or as it is."""
    if isinstance(metric, Metric):
        return _renamed(metric)
    if isinstance(metric, type):
        raise UsageError(f"metric must be an object: {metric.__name__}(...), not the class")
    if all(callable(getattr(metric, name, None)) for name in ("update", "compute", "reset")):
        return _renamed(Metric.of_torchmetrics(metric))
    if callable(metric):
        return _renamed(Metric(getattr(metric, "__name__", "metric"), metric))
    if metric not in METRICS:
        raise UnknownNameError("metric", str(metric), METRICS, "Or pass a callable or a hwprune.Metric.")
    return METRICS[metric]


def _renamed(metric: Metric) -> Metric:
    """A metric of the user's under another name, if one of ours has its name: what is recorded is looked up by it."""
    return metric if metric.reads or metric.name not in METRICS else replace(metric, name=f"{metric.name} (own)")


def of_record(workload: Mapping[str, Any]) -> Metric | None:
    """The metric that a record's or manifest's workload names; None: it is a function of the user's.

    Raises:
        UsageError: ``class_axis`` is none.
    """
    found = METRICS.get(workload["metric"])
    axes = workload.get("class_axis")
    return replace(found, class_axis=parse_axes(axes)) if found is not None and axes else found
