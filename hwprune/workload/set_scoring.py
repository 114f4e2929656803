"""Metrics of a whole split (mAP, F1, AUROC): their value, and an interval from leaving out a part of the split at a time.

Such a number is no mean over examples, so that its spread can't be read off scores. The delete-a-group jackknife (Kott 2001, "The
delete-a-group jackknife") computes it without each of `GROUPS` random groups of examples; a drop is computed so for the dense
model and the candidate together, because both fail on mostly the same examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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


def evaluate(
    metric: Metric, outputs: Sequence[Batch], targets: Sequence[Any], dense: Sequence[Batch] | None = None, *, sure: bool = True
) -> SetScore:
    """The metric of a split, and of the split without each group.

    Args:
        dense: the dense model's outputs, for metrics that compare with them.
        sure: leave groups out; otherwise ``left_out`` is empty.

    Raises:
        CandidateFailure: the metric of all examples is no finite number.
        WorkloadError: it raises, or the split has too few parts to say how sure the number is.
    """
    whole = _Guarded(metric)
    for number, batch in enumerate(outputs):
        if not all(bool(torch.isfinite(tensor).all()) for tensor in batch if tensor.is_floating_point()):
            raise CandidateFailure("evaluate", f"the model's outputs hold NaN or infinity in batch {number}")
    wanted = (dense or outputs) if metric.agreement else targets
    counts = [_count(batch, target) for batch, target in zip(outputs, wanted, strict=True)]
    parts = [
        (whole.seen(batch), whole.seen(target) if metric.agreement else target)
        for batch, target in zip(outputs, wanted, strict=True)
    ]
    states = [whole.state([part]) for part in parts]
    value = whole.value(states)
    if not math.isfinite(value):
        raise CandidateFailure("evaluate", f"metric {metric.name} gives NaN or infinity")
    examples = sum(len(batch[place]) if batch[place := first_answer(batch)].ndim else 1 for batch in outputs)
    if not sure:
        return SetScore(value, (), examples)
    counts = [count if count and _lengths(seen) == {count} else None for (seen, _), count in zip(parts, counts, strict=True)]
    # Where one batch does not come apart, others would by chance: boxes of all images may be as many as images.
    groups = _groups_of_examples(whole, parts, counts, value) if all(counts) else None
    groups = groups or _groups_of_batches(states)
    if len(groups) < FEWEST:
        raise WorkloadError(
            f"metric {metric.name!r} is one number of a whole split; how sure it is comes from leaving parts out. Give at least "
            f"{FEWEST} batches, or targets that come apart into examples (a tensor or a list with an entry for each), of which "
            f"the metric gives the same number: there are {len(groups)} parts"
        )
    again = whole.quick(groups, value)
    left_out = [
        again([state for place, group in enumerate(groups) if place != gone for state in group]) for gone in range(len(groups))
    ]
    if sum(map(math.isfinite, left_out)) < 2:
        raise WorkloadError(f"metric {metric.name!r} gives no number of most parts of the split: give it more examples")
    return SetScore(value, tuple(left_out), examples)


def _groups_of_examples(
    whole: _Guarded, parts: Sequence[tuple[Any, Any]], counts: Sequence[int | None], value: float
) -> list[list[Any]] | None:
    """A state for each random group of examples; None: the metric does not take examples apart, or gives another number."""
    sizes = [count or 0 for count in counts]
    order = np.random.default_rng(SEED).permutation(sum(sizes))
    groups = min(GROUPS, len(order))
    place = np.empty(len(order), dtype=int)
    place[order] = np.arange(len(order)) % groups
    inside = np.split(place, np.cumsum(sizes)[:-1])
    try:
        made = []
        for group in range(groups):
            rows = [np.flatnonzero(own == group).tolist() for own in inside]
            made.append([whole.state([divided(*part, own) for part, own in zip(parts, rows, strict=True) if own])])
        # torchmetrics takes a sigmoid of numbers if one of them, in the same call, is no probability.
        same = math.isclose(whole.value([state for group in made for state in group]), value, rel_tol=1e-6, abs_tol=1e-9)
    except WorkloadError:  # it wants whole batches
        return None
    return made if same else None


def _groups_of_batches(states: Sequence[Any]) -> list[list[Any]]:
    order = np.random.default_rng(SEED).permutation(len(states))
    groups = min(GROUPS, len(states))
    return [[states[place] for place in order[group::groups]] for group in range(groups)]


def measured(metric: Metric, score: SetScore) -> Measurement:
    """The metric with a 95 % interval, if groups were left out."""
    half = _half_width(score.left_out) if score.left_out else 0.0
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
    error = math.sqrt((len(values) - 1) * float(np.mean((values - values.mean()) ** 2)))
    return float(stats.t.ppf(0.975, len(values) - 1)) * error


class _Guarded:
    """The metric of a set, with errors told as the user's."""

    def __init__(self, metric: Metric) -> None:
        assert metric.over_set is not None
        self._metric, self._set = metric, metric.over_set

    def seen(self, batch: Batch) -> Any:
        return self._said(lambda: self._metric.seen(batch))

    def state(self, parts: Sequence[tuple[Any, Any]]) -> Any:
        return self._said(lambda: self._set.state(parts))

    def value(self, states: Sequence[Any]) -> float:
        found: float = self._said(lambda: self._set.value(states))
        return found

    def quick(self, groups: Sequence[Sequence[Any]], value: float) -> Callable[[Sequence[Any]], float]:
        """The way to compute many values: the metric's quicker one, if it has one that gives the same number of all examples."""
        quicker = getattr(self._set, "quick_value", None)
        states = [state for group in groups for state in group]
        if quicker is None or not math.isclose(quicker(states), value, rel_tol=1e-6, abs_tol=1e-9):
            return self.value
        found: Callable[[Sequence[Any]], float] = quicker
        return found

    def _said(self, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except Exception as error:  # the user's metric or post-processing may raise anything
            raise WorkloadError(f"metric {self._metric.name!r} raised {type(error).__name__}: {error}") from error


def divided(output: Any, target: Any, rows: Sequence[int]) -> tuple[Any, Any]:
    """What a metric takes of some examples of a batch.

    Args:
        output, target: tensors, lists with an entry for each example, mappings or tuples of such, or None.
        rows: of the examples.
    """
    return _entries(output, rows), _entries(target, rows)


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


def _entries(target: Any, rows: Sequence[int]) -> Any:
    if target is None or isinstance(target, torch.Tensor):
        return None if target is None else target[rows]
    if isinstance(target, Mapping):
        return {name: _entries(value, rows) for name, value in target.items()}
    if _is_columns(target):
        return tuple(_entries(value, rows) for value in target)
    return type(target)(target[row] for row in rows)
