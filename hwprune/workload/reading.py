"""How a model's outputs are read: scores of classes along which dim, yes-or-no decisions, or numbers.

Everything that judges outputs (metrics, the divergence that guides a search, confidence, labels that are checked, losses) asks
here, so that all of them look at the same entries. What can't be known without being told is asked for, never guessed: an answer
over the wrong dim is a wrong number that looks right. One file because the words of one rule would otherwise be looked up in two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hwprune.errors import UsageError, WorkloadError

if TYPE_CHECKING:
    from hwprune.workload.metrics import Metric

CLASSES, DECISIONS, LABELS, VALUES = "classes", "decisions", "labels", "values"
NONE = "none"
"""The word for an output that holds no scores of classes."""
LEAST_SHARE = 0.01
"""Share of the dense model's decisions that each side must have: of an output that is always on one side, no threshold says
anything."""
SUMS_TO_ONE = 1e-3
ANSWERS, NUMBERS = ("top1", "top5"), ("psnr", "mae", "mse", "r2")
"""Metrics of labels, and of numbers."""
TINY = 1e-7
"""Least probability whose logarithm is taken; float32 softmax gives zeros."""

Axis = int | str
Outputs = Sequence[tuple[torch.Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Reading:
    """How one output is read.

    Attributes:
        place: among the model's outputs.
        kind: ``classes`` (one score a class along ``axis``), ``decisions`` (each entry is a yes or no by itself), ``labels``
            (whole numbers: answers), ``values`` (numbers).
        axis: of the classes, counted from the front.
        probabilities: entries are probabilities (decisions are taken at 0.5), not logits (at 0).
        variance: of the dense model's values over all examples.
    """

    place: int
    kind: str
    axis: int | None = None
    probabilities: bool = False
    variance: float = 1.0

    def class_scores(self, output: torch.Tensor) -> torch.Tensor | None:
        """(N, classes, ...) unnormalised log scores; of decisions those of no and yes, (N, 2, ...); None: the output has none."""
        if self.kind == CLASSES:
            assert self.axis is not None
            scores = output.movedim(self.axis, 1)
            return scores.float().clamp(min=TINY).log() if self.probabilities else scores
        if self.kind != DECISIONS:
            return None
        if not self.probabilities:
            return torch.stack([torch.zeros_like(output), output], dim=1)
        likely = output.double().clamp(TINY, 1 - TINY)
        return torch.stack([torch.log1p(-likely), likely.log()], dim=1)

    def answers(self, output: torch.Tensor) -> torch.Tensor:
        """(N, ...) whole numbers: the classes, or yes (1) and no (0)."""
        if self.kind == CLASSES:
            assert self.axis is not None
            return output.argmax(dim=self.axis)
        if self.kind == DECISIONS:
            return (output > (0.5 if self.probabilities else 0.0)).long()
        return output

    def labels(self, targets: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Targets in the shape of `answers`."""
        if self.kind == DECISIONS:
            return targets.reshape(output.shape).long()
        if self.axis is not None and targets.shape == output.shape:  # one-hot
            return targets.argmax(dim=self.axis)
        found: torch.Tensor = plain_targets(targets, output.shape)
        return found

    def text(self, shape: Sequence[int]) -> str:
        """What it is, for the user."""
        size = "x".join(["N", *map(str, shape[1:])]) if shape else "a single number"
        where = f"output {self.place + 1} ({size})"
        kind = "probabilities" if self.probabilities else "scores"
        if self.kind == CLASSES:
            assert self.axis is not None
            return f"{where} holds {kind} of {shape[self.axis]} classes along dim {self.axis}"
        if self.kind == DECISIONS:
            limit = "probabilities, yes above 0.5" if self.probabilities else "logits, yes above 0"
            return f"{where} holds yes-or-no decisions ({limit})"
        return f"{where} holds {'answers' if self.kind == LABELS else 'numbers'}"


def parse_axes(given: object) -> tuple[Axis, ...]:
    """``class_axis`` of a workload: a whole number or ``none``, or one for each output in order (a sequence, or ``-1,none``).

    Raises `UsageError` for anything else.
    """
    words = given.split(",") if isinstance(given, str) else list(given) if isinstance(given, (tuple, list)) else [given]
    found: list[Axis] = []
    for word in words:
        plain = word.strip() if isinstance(word, str) else word
        if plain == NONE or (isinstance(plain, int) and not isinstance(plain, bool)):
            found.append(plain)
        elif isinstance(plain, str) and plain.lstrip("-").isdigit():
            found.append(int(plain))
        else:
            raise UsageError(f"class_axis must be a dim such as 1 or -1, or {NONE}, one for each output; got {given!r}")
    return tuple(found)


def has_examples(output: torch.Tensor, count: int | None = None) -> bool:
    """Has an output an entry for each example? A loss among the outputs has none."""
    return output.ndim > 0 and (count is None or len(output) == count)


def first_answer(outputs: Sequence[torch.Tensor]) -> int:
    """Place of the first output that is no single number (a loss that a model returns with its answers); 0 if there is none."""
    return next((place for place, output in enumerate(outputs) if output.ndim), 0)


def plain_targets(targets: Any, shape: Sequence[int]) -> Any:
    """Labels without dims of size 1 that the outputs' shape has no place for: (N, 1) labels of (N, classes) scores."""
    if not isinstance(targets, torch.Tensor):
        return targets
    if targets.ndim >= 2 and targets.shape[-1] == 1 and targets.ndim == len(shape) and shape[-1] != 1:
        return targets.squeeze(-1)
    if targets.ndim >= 2 and targets.shape[1] == 1 and targets.ndim == len(shape) and shape[1] != 1:
        return targets.squeeze(1)
    return targets


def label_axes(shape: Sequence[int], targets: Any) -> list[int]:
    """The dims that can be the classes': without one of them the outputs have the labels' shape."""
    labels = plain_targets(targets, shape)
    if not isinstance(labels, torch.Tensor):
        return []
    wanted = tuple(labels.shape)
    return [
        axis for axis in range(1, len(shape)) if shape[axis] > 1 and (*shape[:axis], *shape[axis + 1 :]) == wanted
    ]  # fmt: skip


def given_axis(metric: Metric, place: int, shape: Sequence[int]) -> Axis | None:
    """What the user has said of an output: a dim counted from the front, ``none``, or None where nothing was said.

    Raises `WorkloadError` if the output has no such dim.
    """
    if not metric.class_axis:
        return None
    said = (
        metric.class_axis[0]
        if len(metric.class_axis) == 1
        else metric.class_axis[place]
        if place < len(metric.class_axis)
        else NONE
    )
    if isinstance(said, str):
        return NONE
    if len(metric.class_axis) == 1 and len(shape) < 2:
        return None  # one word for all outputs: a single column has no such dim
    axis = said + len(shape) if said < 0 else said
    if not 1 <= axis < len(shape):
        raise WorkloadError(f"class_axis is {said}, but output {place + 1} has shape {tuple(shape)} (dim 0 holds the examples)")
    return axis


def class_axis(metric: Metric, shape: Sequence[int], targets: Any = None, place: int = 0) -> int | None:
    """The dim of an output that holds one score a class, as far as one batch tells; None: it holds none, or nothing says which.

    By what the user has said; by the labels' shape; of perplexity the last one; without labels dim 1 of (examples, classes). With
    a metric of the user's own outputs (examples, classes) with one whole number an example are scores of classes, and nothing
    else.
    """
    said = given_axis(metric, place, shape)
    if said is not None:
        return None if isinstance(said, str) else said
    if len(shape) < 2:
        return None
    if metric.name == "perplexity":
        return len(shape) - 1 if shape[-1] > 1 else None
    if metric.reads and metric.name in ("top1", "top5", "agreement"):
        if not metric.agreement and isinstance(targets, torch.Tensor):
            fits = label_axes(shape, targets)
            return fits[0] if len(fits) == 1 else None
        return 1 if len(shape) == 2 and shape[1] > 1 else None
    labels = isinstance(targets, torch.Tensor) and targets.ndim == 1 and not targets.is_floating_point()
    return 1 if labels and len(shape) == 2 and shape[1] > 1 else None


def readings(metric: Metric, dense: Outputs, targets: Sequence[Any] = ()) -> tuple[Reading, ...]:
    """How each output with an entry an example is read, by the dense model's outputs over a whole split.

    Args:
        dense: a tuple of outputs a batch.
        targets: of each batch; empty: there are none.

    Raises:
        WorkloadError: it can't be known which dim holds the classes, or which of two.
    """
    found = []
    for place in _by_example(dense, targets):
        found.append(_reading(metric, [batch[place] for batch in dense], list(targets), place))
    return tuple(found)


def _by_example(dense: Outputs, targets: Sequence[Any]) -> list[int]:
    """Places of the outputs with an entry for each example, by the targets or, without, by what most outputs have.

    Boxes that a detector has found are as many as there are to find; anchors are the same for all examples.
    """
    rows = {place: tuple(len(batch[place]) for batch in dense) for place, output in enumerate(dense[0]) if has_examples(output)}
    labelled = bool(targets) and all(isinstance(target, torch.Tensor) and target.ndim for target in targets)
    wanted = tuple(len(target) for target in targets) if labelled else ()
    if wanted not in rows.values() and rows:
        several = list(rows.values())
        wanted = max(several, key=lambda counts: (several.count(counts), sum(counts)))
    return [place for place, counts in rows.items() if counts == wanted]


def judged(metric: Metric, found: Sequence[Reading], dense: Outputs, targets: Sequence[Any]) -> tuple[Reading, ...]:
    """The outputs that a metric of ours looks at: all of them for agreement, else the first one that labels fit."""
    if metric.agreement:
        return tuple(found)
    for reading in found:
        if _fits(metric, reading, dense[0][reading.place], targets[0] if len(targets) else None):
            return (reading,)
    answers = [reading for reading in found if reading.kind == LABELS]  # of a model that ends in an argmax
    return tuple((answers if metric.name == "top1" and answers else found)[:1])


def _fits(metric: Metric, reading: Reading, output: torch.Tensor, target: Any) -> bool:
    if not isinstance(target, torch.Tensor):
        return False
    if metric.name in ANSWERS:
        return reading.kind in (CLASSES, DECISIONS)
    if metric.name == "perplexity":
        return output.shape[:-1] == target.shape
    return output.numel() == target.numel()


def _reading(metric: Metric, outputs: list[torch.Tensor], targets: list[Any], place: int) -> Reading:
    shape = outputs[0].shape
    said = given_axis(metric, place, shape)
    if isinstance(said, int):
        return with_classes(place, outputs, said)
    if not outputs[0].is_floating_point():
        return Reading(place, LABELS)
    if said == NONE or (metric.reads and metric.name in NUMBERS):
        return _values(outputs, place)
    target = targets[0] if targets and not metric.agreement else None
    if metric.reads and metric.name in ANSWERS and isinstance(target, torch.Tensor):
        return by_labels(outputs, targets, place)
    axis = class_axis(metric, shape, target, place)
    if axis is not None:
        return Reading(place, CLASSES, axis, metric.name != "perplexity" and are_distributions(outputs, axis))
    if not (metric.reads and metric.agreement):
        return _values(outputs, place)
    return _by_themselves(outputs, place)


def of_batch(output: torch.Tensor, targets: torch.Tensor | None = None) -> Reading:
    """How one batch of one output is read, where nothing else is known. Raises `WorkloadError` if that can't be told."""
    if targets is not None:
        return by_labels([output], [targets], 0)
    if not output.is_floating_point():
        return Reading(0, LABELS)
    if output.ndim == 2 and output.shape[1] > 1:
        return Reading(0, CLASSES, 1, are_distributions([output], 1))
    return _by_themselves([output], 0)


def with_classes(place: int, outputs: list[torch.Tensor], axis: int) -> Reading:
    """Scores of classes along a dim; probabilities where they are distributions."""
    return Reading(place, CLASSES, axis, are_distributions(outputs, axis))


def by_labels(outputs: list[torch.Tensor], targets: list[Any], place: int) -> Reading:
    """How an output is read beside labels, batch by batch. Raises `WorkloadError` if two dims could be the classes'."""
    shape = outputs[0].shape
    axes = label_axes(shape, targets[0])
    # A last batch of another size, or longer texts, may tell two dims of the same size apart.
    for output, target in zip(outputs, targets, strict=False):
        axes = [axis for axis in axes if axis in label_axes(output.shape, target)] if isinstance(target, torch.Tensor) else axes
    if len(axes) > 1:
        raise WorkloadError(
            f"output {place + 1} has shape {tuple(shape)}, the labels {tuple(targets[0].shape)}: dims "
            f"{' and '.join(map(str, axes))} could both be the classes'. Say which: class_axis={axes[0]} (a field of the "
            "workload, or a word after model.onnx)"
        )
    if axes:
        return Reading(place, CLASSES, axes[0], are_distributions(outputs, axes[0]))
    if targets[0].shape == shape and (hot := [axis for axis in range(1, len(shape)) if _are_one_hot(targets, axis)]):
        return Reading(place, CLASSES, hot[0], are_distributions(outputs, hot[0]))
    if outputs[0].numel() == targets[0].numel() and _are_decisions(targets):
        return Reading(place, DECISIONS, probabilities=_are_probabilities(outputs))
    return _values(outputs, place)


def _by_themselves(outputs: list[torch.Tensor], place: int) -> Reading:
    """Without labels: distributions show themselves, one column is a decision where the dense model decides both ways."""
    shape = outputs[0].shape
    if math.prod(shape[1:]) == 1:
        probabilities = _are_probabilities(outputs)
        yes = float(torch.cat([(x > (0.5 if probabilities else 0.0)).float().reshape(-1) for x in outputs]).mean())
        if LEAST_SHARE <= yes <= 1 - LEAST_SHARE:
            return Reading(place, DECISIONS, probabilities=probabilities)
        return _values(outputs, place)
    axes = [axis for axis in range(1, len(shape)) if shape[axis] > 1 and are_distributions(outputs, axis)]
    if len(axes) == 1:
        return Reading(place, CLASSES, axes[0], probabilities=True)
    raise WorkloadError(
        f"output {place + 1} has shape {tuple(shape)}, and without labels nothing says which dim holds the classes. Say it: "
        f"class_axis=1, class_axis=-1 or, where it holds numbers, class_axis={NONE} (a field of the workload, or a word after "
        "model.onnx; one for each output, as in -1,none)"
    )


def _values(outputs: list[torch.Tensor], place: int) -> Reading:
    # Of all batches, so that a batch of equal examples does not count for more.
    whole = torch.cat([x.reshape(-1).double() for x in outputs])
    return Reading(place, VALUES, variance=max(float(whole.var(unbiased=False)), 1e-30))


def _are_probabilities(outputs: Sequence[torch.Tensor]) -> bool:
    return all(bool(((x >= 0) & (x <= 1)).all()) for x in outputs)


def are_distributions(outputs: Sequence[torch.Tensor], axis: int) -> bool:
    return all(
        x.is_floating_point() and bool((x >= 0).all()) and bool(((x.float().sum(dim=axis) - 1).abs() <= SUMS_TO_ONE).all())
        for x in outputs
    )


def _are_one_hot(targets: Sequence[Any], axis: int) -> bool:
    """Is one entry along the dim 1 and every other 0, in all of them?"""
    return _are_decisions(targets) and all(t.shape[axis] > 1 and bool((t.long().sum(dim=axis) == 1).all()) for t in targets)


def _are_decisions(targets: Sequence[Any]) -> bool:
    """Are all targets 0 or 1 (or left out)?"""
    return all(isinstance(t, torch.Tensor) and bool(((t == 0) | (t == 1)).all()) for t in targets)
