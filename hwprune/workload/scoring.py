"""Metric of a set of outputs, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.errors import CandidateFailure, WorkloadError
from hwprune.latency.samples import batch_order
from hwprune.records.measurement import Measurement
from hwprune.workload import closeness, set_scoring
from hwprune.workload.metrics import Metric, Scores
from hwprune.workload.reading import CLASSES, DECISIONS, VALUES, Reading, first_answer, judged, readings
from hwprune.workload.set_scoring import SetScore
from hwprune.workload.workload import all_tensors

Outputs = list[tuple[torch.Tensor, ...]]
"""One tuple of output tensors a batch."""


def read_outputs(path: Path) -> Outputs:
    """Outputs that a runtime stored, batch by batch."""
    batches: dict[str, list[torch.Tensor]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for name in sorted(stored.files, key=lambda name: batch_order(name.partition(".")[2])):  # outputs by position
            batches.setdefault(name.split(".")[0], []).append(torch.from_numpy(stored[name]))
    return [tuple(batches[number]) for number in sorted(batches, key=batch_order)]


def largest_difference(outputs: Outputs, expected: Outputs, *, chooses: bool = False) -> float:
    """Over all batches and outputs, see `hwprune.workload.closeness`; infinite where number or shape differ."""
    if len(outputs) != len(expected) or not outputs:
        return float("inf")
    return max(closeness.largest(got, wanted, chooses=chooses) for got, wanted in zip(outputs, expected, strict=True))


def score(
    metric: Metric, outputs: Outputs, targets: Sequence[Any], dense: Outputs | None = None, *, sure: bool = True
) -> Measurement:
    """The metric over all batches.

    Args:
        dense: the dense model's outputs, for metrics that compare with them.
        sure: also of a metric of a whole split tell the interval, for which it is computed many times; else that is the value.

    Raises:
        CandidateFailure: outputs or scores hold NaN or infinity, or their exp is none.
        WorkloadError: the metric raises or returns something else than one score an example, or no target counts.
    """
    if metric.over_set is not None:
        return set_scoring.measured(metric, set_scoring.evaluate(metric, outputs, targets, dense, sure=sure))
    scores, weights = _scored(metric, outputs, targets, dense)
    try:
        return metric.reduce(scores, weights)
    except OverflowError:
        raise CandidateFailure(
            "evaluate", f"metric {metric.name} is beyond all numbers: exp of {float(scores.mean()):.4g}"
        ) from None


def paired_drop(metric: Metric, outputs: Outputs, dense: Outputs, targets: Sequence[Any]) -> Measurement:
    """The drop from the dense model, with an interval from comparing the two example by example.

    Most examples are answered alike by both, and say nothing about the difference; two separate intervals would be far too wide.

    Raises:
        CandidateFailure, WorkloadError: as `score`.
    """
    if metric.over_set is not None:
        return score_and_drop(metric, outputs, dense, targets)[1]
    scores, weights = _scored(metric, outputs, targets, dense)
    dense_scores, _ = _scored(metric, dense, targets, dense)
    return metric.paired_drop(dense_scores, scores, weights)


def score_and_drop(
    metric: Metric, outputs: Outputs, dense: Outputs, targets: Sequence[Any], known: SetScore | None = None
) -> tuple[Measurement, Measurement]:
    """The metric, and the drop from the dense model: `score` and `paired_drop` with one look at a metric of a whole split.

    Args:
        known: what such a metric gives of the dense model's outputs on the split; None: it is computed.

    Raises:
        CandidateFailure, WorkloadError: as `score`.
    """
    if metric.over_set is None:
        return score(metric, outputs, targets, dense), paired_drop(metric, outputs, dense, targets)
    found = set_scoring.evaluate(metric, outputs, targets, dense)
    known = known or set_scoring.evaluate(metric, dense, targets, dense)
    return set_scoring.measured(metric, found), set_scoring.drop(metric, known, found)


def by_example(metric: Metric, outputs: Outputs, targets: Sequence[Any], dense: Outputs | None = None) -> torch.Tensor:
    """One score an example, in order.

    Raises:
        CandidateFailure, WorkloadError: as `score`; also for a metric of a whole split.
    """
    if metric.over_set is not None:
        raise WorkloadError(f"metric {metric.name!r} is one number of a whole split, and has no score for each example")
    return _scored(metric, outputs, targets, dense)[0]


def _scored(
    metric: Metric, outputs: Outputs, targets: Sequence[Any], dense: Outputs | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores and weights of all examples."""
    for number, batch in enumerate(outputs):
        if not all(bool(torch.isfinite(tensor).all()) for tensor in batch if tensor.is_floating_point()):
            raise CandidateFailure("evaluate", f"the model's outputs hold NaN or infinity in batch {number}")
    looked_at: tuple[Reading | None, ...] = (None,)
    if metric.reads:
        found = readings(metric, dense or outputs, () if metric.agreement else targets)
        looked_at = judged(metric, found, dense or outputs, targets) or (None,)
        if metric.name == "r2":
            variance = torch.cat([target.reshape(-1).double() for target in targets]).var(unbiased=False)
            looked_at = tuple(replace(one, variance=max(float(variance), 1e-30)) for one in looked_at if one is not None)
    scores, weights = [], []
    for number, batch in enumerate(outputs):
        parts = []
        for reading in looked_at:
            place = first_answer(batch) if reading is None else reading.place
            output: Any = batch if metric.whole else batch[place]
            target = targets[number] if not metric.agreement else (dense or outputs)[number]
            if metric.agreement and not metric.whole:
                target = target[place]
            if metric.post is not None:
                output, target = _after(metric, output), _after(metric, target) if metric.agreement else target
            more = (reading,) if metric.reads else ()
            parts.append(_scores(metric, metric.scores, output, target, _count(batch[place]), more))
        scores.append(torch.stack(parts).mean(dim=0))
        if metric.weights is not None:
            weights.append(_scores(metric, metric.weights, output, target, _count(batch[place]), more))
    whole = torch.cat(scores)
    if not bool(torch.isfinite(whole).all()):
        raise CandidateFailure("evaluate", f"metric {metric.name} gives NaN or infinity")
    if weights and not bool((torch.cat(weights) > 0).any()):
        raise WorkloadError(f"{metric.name} has no counted target: all targets of these examples are left out (-100)")
    return whole, torch.cat(weights) if weights else None


def divergence(metric: Metric, outputs: Outputs, dense: Outputs, targets: Sequence[Any]) -> Measurement:
    """How far the outputs are from the dense model's, an example at a time; smoother than any metric of answers.

    Of scores of classes and of decisions (see `hwprune.workload.reading`) the KL divergence in nats, KL(dense || outputs),
    averaged over the positions that the metric looks at; of numbers the squared difference as a share of the dense output's
    variance; of answers the share that changed. Of several outputs the mean: none may be ruined unseen.

    Raises:
        CandidateFailure: it is not finite.
        WorkloadError: it can't be known how the outputs are read.
    """
    if metric.divergence is not None:
        return _own_divergence(metric, outputs, dense)
    found = readings(metric, dense, () if metric.agreement else targets) or (Reading(0, VALUES, variance=1e-30),)
    columns = []
    for reading in found:
        parts = []
        for batch, reference, target in zip(outputs, dense, targets, strict=True):
            mine, wanted = batch[reading.place], reference[reading.place]
            if reading.kind in (CLASSES, DECISIONS):
                parts.append(_kl(mine, wanted, reading, target if metric.name == "perplexity" else None))
                continue
            each = (mine != wanted).double()
            if reading.kind == VALUES:
                each = (mine.double() - wanted.double()).square() / reading.variance
            parts.append(each.reshape(len(each), -1).mean(dim=1) if each.ndim else each.reshape(1))
        columns.append(torch.cat(parts))
    # An output whose first dim is not the examples' counts by its mean.
    values = torch.stack([c if len(c) == len(columns[0]) else c.mean().expand(len(columns[0])) for c in columns]).mean(dim=0)
    if not bool(torch.isfinite(values).all()):
        raise CandidateFailure("evaluate", "the divergence from the dense outputs is not finite")
    return _mean_divergence(values, "nats" if any(reading.kind in (CLASSES, DECISIONS) for reading in found) else "variance")


def _own_divergence(metric: Metric, outputs: Outputs, dense: Outputs) -> Measurement:
    """By the metric's own function, from all outputs of a batch."""
    assert metric.divergence is not None
    parts = [
        _scores(metric, metric.divergence, batch, reference, _count(batch[first_answer(batch)]))
        for batch, reference in zip(outputs, dense, strict=True)
    ]
    values = torch.cat(parts)
    if not bool(torch.isfinite(values).all()):
        raise CandidateFailure("evaluate", "the divergence from the dense outputs is not finite")
    return _mean_divergence(values, "divergence")


def _mean_divergence(values: torch.Tensor, unit: str) -> Measurement:
    half = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    mean = max(float(values.mean()), 0.0)  # rounding may leave less than nothing
    return Measurement(mean, unit, max(0.0, mean - half), mean + half, len(values))


def _kl(outputs: torch.Tensor, wanted: torch.Tensor, reading: Reading, labels: Any) -> torch.Tensor:
    """One number an example; a few examples at a time, because distributions over words are large."""
    step = max(1, CHUNK // max(1, wanted[0].numel()))
    parts = []
    for start in range(0, len(wanted), step):
        part = slice(start, start + step)
        theirs, mine = reading.class_scores(wanted[part]), reading.class_scores(outputs[part])
        assert theirs is not None and mine is not None
        expected = theirs.double().log_softmax(dim=1)
        each = (expected.exp() * (expected - mine.double().log_softmax(dim=1))).sum(dim=1)
        each = each.reshape(len(each), -1)
        if isinstance(labels, torch.Tensor) and labels[part].numel() == each.numel():
            used = (labels[part] != -100).reshape(each.shape)
            parts.append((each * used).sum(dim=1) / used.sum(dim=1).clamp(min=1))
        else:
            parts.append(each.mean(dim=1))
    return torch.cat(parts)


def _after(metric: Metric, output: Any) -> Any:
    """Outputs after the metric's post-processing."""
    assert metric.post is not None
    try:
        return metric.post(output)
    except Exception as error:  # the user's function may raise anything
        raise WorkloadError(f"post-processing of metric {metric.name!r} raised {type(error).__name__}: {error}") from error


def _count(output: torch.Tensor) -> int:
    return len(output) if output.ndim else 1


CHUNK = 8_000_000
"""Elements that are converted to 64 bits at once."""


def _scores(
    metric: Metric, function: Scores, output: Any, target: Any, examples: int, more: tuple[Any, ...] = ()
) -> torch.Tensor:
    """One number an example, from the metric's scores or its weights."""
    try:
        scores = function(output, target, *more)
    except Exception as error:  # the user's metric may raise anything
        raise WorkloadError(f"metric {metric.name!r} raised {type(error).__name__}: {error}") from error
    if isinstance(scores, np.ndarray) and scores.dtype.kind in "biuf":
        scores = torch.from_numpy(np.asarray(scores, order="C"))
    if not isinstance(scores, torch.Tensor) or scores.ndim != 1 or len(scores) != examples:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise WorkloadError(f"metric {metric.name!r} must return a 1-D tensor with one score an example ({examples}), got {got}")
    return scores.detach().double().cpu()


@torch.no_grad()
def torch_outputs(module: torch.nn.Module, inputs: Sequence[torch.Tensor], examples: int) -> tuple[torch.Tensor, ...]:
    """Outputs of ``module`` on the first ``examples`` examples of a batch."""
    return all_tensors(module(*(x[:examples] for x in inputs)))
