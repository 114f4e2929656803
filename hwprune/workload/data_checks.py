"""What is wrong with a workload's data, found with a batch of each split before anything takes long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hwprune.errors import WorkloadError
from hwprune.records.measurement import Measurement
from hwprune.workload.metrics import IGNORED, Metric
from hwprune.workload.reading import CLASSES, DECISIONS, LABELS, NONE, Reading, judged, readings
from hwprune.workload.workload import Workload, all_tensors

SPLITS = ("calibration", "validation", "test")
"""Those that every search reads."""
FAR = 0.1
"""Validation and test scores of the dense model that differ by more, beyond their intervals, are worth a word."""
FLATTERING = 0.03
"""Difference that is told where validation is the better split: a model that was trained on these data knows the answers."""
NOT_ALIKE = "the splits are not alike"
COMPARED = ("top1", "top5")
"""Metrics whose scores on two splits can be compared."""
FIRST_LOOK, FIRST_LOOK_BYTES = 2000, 500_000_000
"""Test examples, and bytes of them, on which the dense model is looked at before a search."""


def check_batches(workload: Workload, module: nn.Module, splits: Sequence[str] = SPLITS) -> None:
    """Run the first batch of every split that there is through the dense model.

    Args:
        module: in eval mode.

    Raises:
        WorkloadError: the model can't take the inputs of a split, or labels don't go with its outputs.
    """
    for split in splits:
        if getattr(workload, split) is None:
            continue
        inputs, targets = next(workload.batches(split))
        where = f"batch 0 of the {split} loader of workload {workload.name!r}"
        try:
            with torch.no_grad():
                outputs = all_tensors(module(*inputs))
        except WorkloadError:
            raise
        except Exception as error:  # the model may raise anything
            raise WorkloadError(
                f"{where} has inputs of shape {_shapes(inputs)}, and the model raises with them (example_inputs are "
                f"{_shapes(workload.example_inputs)}): {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error
        if split in ("validation", "test"):
            check_labels(workload, split, [outputs], [targets])


def check_weights(workload: Workload) -> None:
    """Are all the model's parameters numbers?

    Raises:
        WorkloadError: one holds NaN or infinity, as after a training that diverged: nothing can be scored with it.
    """
    for name, parameter in workload.model.named_parameters():
        if (parameter.is_floating_point() or parameter.is_complex()) and not bool(torch.isfinite(parameter).all()):
            raise WorkloadError(
                f"parameter {name} of workload {workload.name!r} holds NaN or infinity: did its training diverge, or was the "
                "checkpoint read in a type that can't hold its numbers?"
            )


def unlike_example(workload: Workload) -> str | None:
    """A sentence where validation inputs have other sizes than example_inputs, whose latency is measured; else None."""
    inputs, _ = next(workload.batches("validation"))
    for number, (one, example) in enumerate(zip(inputs, workload.example_inputs, strict=False)):
        if one.ndim == example.ndim and one.shape[1:] != example.shape[1:]:
            which = f" of input {number}" if len(inputs) > 1 else ""
            return (
                f"Latency is measured with example_inputs of {_size(example)}{which}, and validation examples are {_size(one)}: "
                "speedups are those of the first, accuracies those of the second."
            )
    return None


def _size(x: torch.Tensor) -> str:
    return "x".join(str(size) for size in x.shape[1:])


def check_labels(workload: Workload, split: str, dense: Sequence[tuple[torch.Tensor, ...]], targets: Sequence[Any]) -> None:
    """Look at labels beside the dense model's outputs, batch by batch.

    Raises:
        WorkloadError: they name classes that the outputs don't have, or nothing says how the outputs are read.
    """
    metric = workload.scoring
    if not metric.reads:
        return
    found = readings(metric, dense, () if metric.agreement else targets)
    if metric.name not in ("top1", "top5", "perplexity"):
        return
    looked_at = judged(metric, found, dense, targets)
    for number, labels in enumerate(targets):
        if not isinstance(labels, torch.Tensor):
            raise WorkloadError(
                f"batch {number} of the {split} loader of workload {workload.name!r} has targets of type "
                f"{type(labels).__name__}; {metric.name} needs a tensor with the numbers of classes"
            )
        if looked_at:
            _check_batch_labels(
                workload, f"batch {number} of the {split} loader", looked_at[0], dense[min(number, len(dense) - 1)], labels
            )


def _check_batch_labels(
    workload: Workload, which: str, reading: Reading, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor
) -> None:
    metric, shape = workload.scoring, outputs[reading.place].shape
    where = f"{which} of workload {workload.name!r}"
    whole = not labels.is_floating_point() or bool((labels == labels.round()).all())
    answers = reading.kind == LABELS and labels.numel() == outputs[reading.place].numel()
    if (reading.kind not in (CLASSES, DECISIONS) and not answers) or not whole:
        raise WorkloadError(
            f"{where} has targets of {labels.dtype} and shape {_shapes([labels])}, outputs have shape {_shapes(outputs)}; "
            f"{metric.name} needs the whole numbers of classes (of one-hot rows take argmax; numbers are judged by metric mae, "
            "mse or r2)"
        )
    if reading.kind in (DECISIONS, LABELS):
        return
    assert reading.axis is not None
    classes = shape[reading.axis]
    counted = labels[labels != IGNORED] if metric.name == "perplexity" or labels.ndim > 1 else labels
    if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
        raise WorkloadError(
            f"{where} has labels from {int(counted.min())} to {int(counted.max())}; the model's outputs have {classes} "
            f"classes, 0 to {classes - 1} (a metric of your own may leave examples out)"
        )


def doubt(metric: Metric, dense: Measurement, outputs: Sequence[tuple[torch.Tensor, ...]], targets: Sequence[Any]) -> str | None:
    """A sentence where the dense model is no better than chance, so that no drop means anything; else None.

    Args:
        outputs: the dense model's, a tuple a batch.
    """
    if metric.name not in ("top1", "top5") or not metric.reads:
        return None
    found = judged(metric, readings(metric, outputs, targets), outputs, targets)
    if not found or found[0].kind not in (CLASSES, DECISIONS):
        return None
    axis = found[0].axis
    classes = 2 if axis is None else outputs[0][found[0].place].shape[axis]
    chance = min(1.0, (1 if metric.name == "top1" else 5) / classes)
    if chance >= 1 or dense.ci_low > chance:
        return None
    return (
        f"The dense model's {metric.name} is {dense.value:.4g}, no better than chance among {classes} classes "
        f"({chance:.3g}): are trained weights loaded, and are inputs and labels those that it was trained with? "
        "Drops mean nothing here."
    )


def how_read(metric: Metric, outputs: Sequence[tuple[torch.Tensor, ...]], targets: Sequence[Any]) -> str | None:
    """A sentence on how outputs are read, where that is not plain: one output with scores of classes in dim 1; else None.

    Without labels nothing says that (examples, n) are scores of n classes, though they mostly are: that is told too.
    """
    if not metric.reads:
        return None
    found = readings(metric, outputs, () if metric.agreement else targets)
    looked_at = judged(metric, found, outputs, targets)
    plain = [reading.kind == CLASSES and reading.axis == 1 and not reading.probabilities for reading in looked_at]
    assumed = metric.agreement and not metric.class_axis and any(plain)
    if len(outputs[0]) == 1 and all(plain) and not assumed:
        return None
    parts = "; ".join(reading.text(outputs[0][reading.place].shape) for reading in looked_at)
    left = len(outputs[0]) - len(looked_at)
    rest = f" {left} other output{'s' if left > 1 else ''} not judged by it." if left else ""
    guess = f" That is a guess: if the output holds numbers, say class_axis={NONE}." if assumed else ""
    return f"{metric.name}: {parts}.{rest}{guess}"


def apart(metric: Metric, validation: Measurement, test: Measurement) -> str | None:
    """A sentence where the dense model scores very differently on validation and test; else None."""
    if metric.name not in COMPARED or (validation.ci_low <= test.ci_high and test.ci_low <= validation.ci_high):
        return None
    better = validation.value - test.value
    if better < FLATTERING and -better < FAR:
        return None
    return (
        f"The dense model's {metric.name} is {validation.value:.4g} on validation and {test.value:.4g} on {test.samples} test "
        f"examples: {NOT_ALIKE} (labels, preprocessing, or validation data that the model was trained on), and drops "
        "on validation, which lead the search, are not those of the front."
    )


def _shapes(tensors: Sequence[torch.Tensor]) -> str:
    return " and ".join("x".join(map(str, x.shape)) or "()" for x in tensors)
