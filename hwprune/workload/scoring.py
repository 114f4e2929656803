"""Metric of a set of outputs, with its interval; and the evaluation samples as a file."""

from __future__ import annotations

import itertools
import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.errors import CandidateFailure, UsageError, WorkloadError
from hwprune.latency.samples import batch_order
from hwprune.records.measurement import Measurement
from hwprune.workload.metrics import Metric, Scores, class_axis
from hwprune.workload.workload import Workload, first_tensor

Outputs = list[tuple[torch.Tensor, ...]]
"""One tuple of output tensors a batch."""


def write_samples(workload: Workload, split: str, path: Path, part: slice | None = None) -> list[Any]:
    """Store the inputs of a split as an .npz (one member a batch and input, no pickle); returns the targets.

    Args:
        part: only these batches.
    """
    batches = part or slice(None)
    return write_batches(itertools.islice(workload.batches(split), batches.start, batches.stop), path)


def write_batches(batches: Iterable[tuple[tuple[torch.Tensor, ...], Any]], path: Path) -> list[Any]:
    """Store batches as `write_samples` does; returns the targets."""
    targets: list[Any] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for number, (inputs, target) in enumerate(batches):
            for position, tensor in enumerate(inputs):
                _write_member(archive, f"{number:05d}.input{position}", tensor)
            if isinstance(target, torch.Tensor):
                _write_member(archive, f"{number:05d}.target", target)
            targets.append(target)
    temporary.replace(path)
    return targets


def _write_member(archive: zipfile.ZipFile, name: str, tensor: torch.Tensor) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, tensor.detach().cpu().contiguous().numpy(), allow_pickle=False)


def read_targets(path: Path) -> list[torch.Tensor | None]:
    """The targets that `write_samples` stored; None for a batch whose targets were no tensor."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = sorted({name.split(".")[0] for name in stored.files}, key=batch_order)
            return [torch.from_numpy(stored[f"{n}.target"]) if f"{n}.target" in stored.files else None for n in names]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} can't be read as evaluation samples: {error}") from error


def read_outputs(path: Path) -> Outputs:
    """Outputs that a runtime stored, batch by batch."""
    batches: dict[str, list[torch.Tensor]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for name in sorted(stored.files, key=lambda name: batch_order(name.partition(".")[2])):  # outputs by position
            batches.setdefault(name.split(".")[0], []).append(torch.from_numpy(stored[name]))
    return [tuple(batches[number]) for number in sorted(batches, key=batch_order)]


def largest_difference(outputs: Outputs, expected: Outputs) -> float:
    """Over all batches and outputs, relative to the largest of each output; infinite where number or shape differ."""
    if len(outputs) != len(expected) or not outputs:
        return float("inf")
    worst = 0.0
    for got, wanted in zip(outputs, expected, strict=True):
        if [a.shape for a in got] != [b.shape for b in wanted]:
            return float("inf")
        for a, b in zip(got, wanted, strict=True):
            scale = max(float(b.double().abs().max()), 1e-30) if b.numel() else 1.0
            difference = float((a.double() - b.double()).abs().max()) / scale if b.numel() else 0.0
            worst = max(worst, difference) if math.isfinite(difference) else float("inf")  # NaN is a difference
    return worst


def score(metric: Metric, outputs: Outputs, targets: Sequence[Any], dense: Outputs | None = None) -> Measurement:
    """The metric over all batches.

    Args:
        dense: the dense model's outputs, for metrics that compare with them.

    Raises:
        CandidateFailure: outputs or scores hold NaN or infinity, or their exp is none.
        WorkloadError: the metric raises or returns something else than one score an example, or no target counts.
    """
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
    scores, weights = _scored(metric, outputs, targets, dense)
    dense_scores, _ = _scored(metric, dense, targets, dense)
    return metric.paired_drop(dense_scores, scores, weights)


def _scored(
    metric: Metric, outputs: Outputs, targets: Sequence[Any], dense: Outputs | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores and weights of all examples."""
    parts, weights = [], []
    for number, batch in enumerate(outputs):
        if not all(bool(torch.isfinite(tensor).all()) for tensor in batch if tensor.is_floating_point()):
            raise CandidateFailure("evaluate", f"the model's outputs hold NaN or infinity in batch {number}")
        target = (dense or outputs)[number] if metric.agreement else targets[number]
        if metric.agreement and not metric.whole:
            target = target[0]
        output = batch if metric.whole else batch[0]
        parts.append(_scores(metric, metric.scores, output, target, len(batch[0])))
        if metric.weights is not None:
            weights.append(_scores(metric, metric.weights, output, target, len(batch[0])))
    scores = torch.cat(parts)
    if not bool(torch.isfinite(scores).all()):
        raise CandidateFailure("evaluate", f"metric {metric.name} gives NaN or infinity")
    if weights and not bool((torch.cat(weights) > 0).any()):
        raise WorkloadError(f"{metric.name} has no counted target: all targets of these examples are left out (-100)")
    return scores, torch.cat(weights) if weights else None


def divergence(metric: Metric, outputs: Outputs, dense: Outputs, targets: Sequence[Any]) -> Measurement:
    """How far the outputs are from the dense model's, an example at a time; smoother than any metric of answers.

    Of classifiers (see `hwprune.workload.metrics.class_axis`) the KL divergence in nats, KL(dense || outputs), averaged
    over the positions that the metric looks at; of everything else the squared difference of the first output
    as a share of the dense output's
    variance.

    Raises:
        CandidateFailure: it is not finite.
    """
    parts, unit = [], "variance"
    variance = None
    for batch, reference, target in zip(outputs, dense, targets, strict=True):
        axis = class_axis(metric, reference[0].shape, target)
        if axis is not None:
            unit = "nats"
            parts.append(_kl(batch[0], reference[0], axis, target if metric.name == "perplexity" else None))
        else:
            if variance is None:  # of all batches, so that a batch of equal examples does not count for more
                whole = torch.cat([dense_batch[0].reshape(-1).double() for dense_batch in dense])
                variance = whole.var(unbiased=False).clamp(min=1e-30)
            each = (batch[0].double() - reference[0].double()).square() / variance
            parts.append(each.reshape(len(each), -1).mean(dim=1) if each.ndim else each.reshape(1))
    values = torch.cat(parts)
    if not bool(torch.isfinite(values).all()):
        raise CandidateFailure("evaluate", "the divergence from the dense outputs is not finite")
    half = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    mean = max(float(values.mean()), 0.0)  # rounding may leave less than nothing
    return Measurement(mean, unit, max(0.0, mean - half), mean + half, len(values))


def _kl(outputs: torch.Tensor, wanted: torch.Tensor, axis: int, labels: Any) -> torch.Tensor:
    """One number an example; a few examples at a time, because distributions over words are large."""
    step = max(1, CHUNK // max(1, wanted[0].numel()))
    parts = []
    for start in range(0, len(wanted), step):
        part = slice(start, start + step)
        expected = wanted[part].double().log_softmax(dim=axis)
        each = (expected.exp() * (expected - outputs[part].double().log_softmax(dim=axis))).sum(dim=axis)
        each = each.reshape(len(each), -1)
        if isinstance(labels, torch.Tensor) and labels[part].numel() == each.numel():
            used = (labels[part] != -100).reshape(each.shape)
            parts.append((each * used).sum(dim=1) / used.sum(dim=1).clamp(min=1))
        else:
            parts.append(each.mean(dim=1))
    return torch.cat(parts)


CHUNK = 8_000_000
"""Elements that are converted to 64 bits at once."""


def _scores(metric: Metric, function: Scores, output: Any, target: Any, examples: int) -> torch.Tensor:
    """One number an example, from the metric's scores or its weights."""
    try:
        scores = function(output, target)
    except Exception as error:  # the user's metric may raise anything
        raise WorkloadError(f"metric {metric.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(scores, torch.Tensor) or scores.ndim != 1 or len(scores) != examples:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise WorkloadError(f"metric {metric.name!r} must return a 1-D tensor with one score an example ({examples}), got {got}")
    return scores.detach().double().cpu()


@torch.no_grad()
def torch_outputs(module: torch.nn.Module, inputs: Sequence[torch.Tensor], examples: int) -> torch.Tensor:
    """First output of ``module`` on the first ``examples`` examples of a batch."""
    return first_tensor(module(*(x[:examples] for x in inputs)))
