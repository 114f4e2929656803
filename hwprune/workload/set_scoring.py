"""Metrics of a whole split (mAP, F1, AUROC): their value, and an interval from leaving out a part of the split at a time.

Such a number is no mean over examples, so that its spread can't be read off scores. The delete-a-group jackknife (Kott 2001, "The
delete-a-group jackknife") computes it without each of `GROUPS` random groups of examples; a drop is computed so for the dense
model and the candidate together, because both fail on mostly the same examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats

from hwprune.errors import CandidateFailure, WorkloadError
from hwprune.records.measurement import Measurement
from hwprune.workload.metrics import Metric
from hwprune.workload.reading import first_answer

GROUPS, FEWEST = 20, 5
"""Groups of examples that are left out in turn, and the fewest that give an interval."""
SEED = 0

Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class SetScore:
    """A metric of a whole split.

    Attributes:
        value: of all examples.
        left_out: its value without each group.
        examples: their number.
    """

    value: float
    left_out: tuple[float, ...]
    examples: int


def evaluate(metric: Metric, outputs: Sequence[Batch], targets: Sequence[Any], dense: Sequence[Batch] | None = None) -> SetScore:
    """The metric of a split, and of the split without each group.

    Args:
        dense: the dense model's outputs, for metrics that compare with them.

    Raises:
        CandidateFailure: the metric of all examples is no finite number.
        WorkloadError: it raises, or the split has too few parts to say how sure the number is.
    """
    whole = _Guarded(metric)
    wanted = (dense or outputs) if metric.agreement else targets
    counts = [_count(batch, target) for batch, target in zip(outputs, wanted, strict=True)]
    for number, batch in enumerate(outputs):
        if not all(bool(torch.isfinite(tensor).all()) for tensor in batch if tensor.is_floating_point()):
            raise CandidateFailure("evaluate", f"the model's outputs hold NaN or infinity in batch {number}")
    batches = [
        (whole.seen(batch), whole.seen(target) if metric.agreement else target)
        for batch, target in zip(outputs, wanted, strict=True)
    ]
    states = [whole.state(*batch) for batch in batches]
    value = whole.value(states)
    if not math.isfinite(value):
        raise CandidateFailure("evaluate", f"metric {metric.name} gives NaN or infinity")
    counts = [count if count and _lengths(seen) == {count} else None for (seen, _), count in zip(batches, counts, strict=True)]
    if all(counts):  # where one did not, others would come apart by chance: boxes of all images may be as many as images
        pieces = [
            whole.state(*piece) for batch, count in zip(batches, counts, strict=True) for piece in divided(*batch, count or 0)
        ]
        # torchmetrics takes a sigmoid of numbers if one of them, in the same call, is no probability.
        if math.isclose(whole.value(pieces), value, rel_tol=1e-6, abs_tol=1e-9):
            states = pieces
    if len(states) < FEWEST:
        raise WorkloadError(
            f"metric {metric.name!r} is one number of a whole split; how sure it is comes from leaving parts out. Give at least "
            f"{FEWEST} batches, or targets that come apart into examples (a tensor or a list with an entry for each), of which "
            f"the metric gives the same number: there are {len(states)} parts"
        )
    order = np.random.default_rng(SEED).permutation(len(states))
    groups = min(GROUPS, len(states))
    left_out = []
    for group in range(groups):
        gone = set(order[group::groups].tolist())
        left_out.append(whole.value([state for place, state in enumerate(states) if place not in gone]))
    examples = sum(len(batch[first_answer(batch)]) for batch in outputs)
    return SetScore(value, tuple(left_out), examples)


def measured(metric: Metric, score: SetScore) -> Measurement:
    """The metric with a 95 % interval."""
    half = _half_width(score.left_out)
    return Measurement(score.value, metric.name, score.value - half, score.value + half, score.examples)


def drop(metric: Metric, dense: SetScore, score: SetScore) -> Measurement:
    """The drop from dense with a 95 % interval, from the same groups left out of both.

    Raises:
        WorkloadError: they are of different splits.
    """
    if len(dense.left_out) != len(score.left_out):
        raise WorkloadError(f"metric {metric.name!r} was computed on different splits: they can't be compared")
    value = metric.drop(dense.value, score.value)
    half = _half_width([metric.drop(a, b) for a, b in zip(dense.left_out, score.left_out, strict=True)])
    return Measurement(value, metric.name, value - half, value + half, score.examples)


def _half_width(left_out: Sequence[float]) -> float:
    """Half of a 95 % interval by Student's t; groups without which there is no number are passed over."""
    values = np.asarray([value for value in left_out if math.isfinite(value)])
    if len(values) < 2:
        return math.inf
    error = math.sqrt((len(values) - 1) * float(np.mean((values - values.mean()) ** 2)))
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


class _Guarded:
    """The metric of a set, with errors told as the user's."""

    def __init__(self, metric: Metric) -> None:
        assert metric.over_set is not None
        self._metric, self._set = metric, metric.over_set

    def seen(self, batch: Batch) -> Any:
        try:
            return self._metric.seen(batch)
        except Exception as error:  # the user's post-processing may raise anything
            raise self._said(error) from error

    def state(self, output: Any, target: Any) -> Any:
        try:
            return self._set.state(output, target)
        except Exception as error:
            raise self._said(error) from error

    def value(self, states: Sequence[Any]) -> float:
        try:
            return self._set.value(states)
        except Exception as error:
            raise self._said(error) from error

    def _said(self, error: Exception) -> WorkloadError:
        return WorkloadError(f"metric {self._metric.name!r} raised {type(error).__name__}: {error}")


def divided(output: Any, target: Any, count: int) -> list[tuple[Any, Any]]:
    """What a metric takes of a batch, as examples.

    Args:
        output, target: tensors, lists with an entry for each example, mappings or tuples of such, or None.
        count: of the batch's examples.
    """
    return [(_entry(output, i), _entry(target, i)) for i in range(count)]


def _count(batch: Batch, target: Any) -> int | None:
    """Examples of a batch; None where outputs and targets don't have as many entries."""
    lengths = {len(x) if x.ndim else -1 for x in batch} | _lengths(target)
    return lengths.pop() if len(lengths) == 1 and min(lengths) > 0 else None


def _lengths(target: Any) -> set[int]:
    if target is None:
        return set()
    if isinstance(target, torch.Tensor):
        return {len(target) if target.ndim else -1}
    if isinstance(target, Mapping):
        return set().union(*(_lengths(value) for value in target.values()))
    if _is_columns(target):
        return set().union(*(_lengths(value) for value in target))
    return {len(target)} if isinstance(target, (list, tuple)) else {-1}


def _is_columns(target: Any) -> bool:
    """Is it a tuple of tensors of one length, each with an entry for each example, and no list of examples?"""
    if not isinstance(target, tuple) or not all(isinstance(value, torch.Tensor) and value.ndim for value in target):
        return False
    return len({len(value) for value in target}) == 1


def _entry(target: Any, place: int) -> Any:
    if isinstance(target, Mapping):
        return {name: _entry(value, place) for name, value in target.items()}
    if _is_columns(target):
        return tuple(_entry(value, place) for value in target)
    return None if target is None else target[place : place + 1]
