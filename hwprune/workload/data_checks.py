"""What is wrong with a workload's data, found with a batch of each split before anything takes long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hwprune.errors import WorkloadError
from hwprune.records.measurement import Measurement
from hwprune.workload.metrics import Metric, class_axis
from hwprune.workload.workload import Workload, first_tensor

SPLITS = ("calibration", "validation", "test")
"""Those that every search reads."""
IGNORED = -100
"""The label that PyTorch's losses leave out."""
FAR = 0.1
"""Validation and test scores of the dense model that differ by more, beyond their intervals, are worth a word."""
FLATTERING = 0.03
"""The same where validation is the better one: a model that was trained on these data has learned its answers there."""
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
                outputs = first_tensor(module(*inputs))
        except WorkloadError:
            raise
        except Exception as error:  # the model may raise anything
            raise WorkloadError(
                f"{where} has inputs of shape {_shapes(inputs)}, and the model raises with them (example_inputs are "
                f"{_shapes(workload.example_inputs)}): {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error
        if split in ("validation", "test"):
            check_labels(workload, split, tuple(outputs.shape), [targets])


def check_labels(workload: Workload, split: str, shape: Sequence[int], targets: Sequence[Any]) -> None:
    """Raises `WorkloadError` if labels of a split name classes that outputs of ``shape`` don't have."""
    metric = workload.scoring
    axis = class_axis(metric, shape) if metric.name in ("top1", "top5", "perplexity") else None
    if axis is None:
        return
    classes = shape[axis]
    for number, labels in enumerate(targets):
        where = f"batch {number} of the {split} loader of workload {workload.name!r}"
        if not isinstance(labels, torch.Tensor):
            continue
        if labels.ndim != len(shape) - 1 or (labels.is_floating_point() and bool((labels != labels.round()).any())):
            raise WorkloadError(
                f"{where} has targets of {labels.dtype} and shape {_shapes([labels])}; {metric.name} needs the whole "
                "numbers of classes (of one-hot rows take argmax)"
            )
        counted = labels[labels != IGNORED] if metric.name == "perplexity" else labels
        if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
            raise WorkloadError(
                f"{where} has labels from {int(counted.min())} to {int(counted.max())}; the model's outputs have {classes} "
                f"classes, 0 to {classes - 1} (a metric of your own may leave examples out)"
            )


def doubt(metric: Metric, dense: Measurement, shape: Sequence[int]) -> str | None:
    """A sentence where the dense model is no better than chance, so that no drop means anything; else None."""
    axis = class_axis(metric, shape) if metric.name in ("top1", "top5") else None
    if axis is None:
        return None
    chance = min(1.0, (1 if metric.name == "top1" else 5) / shape[axis])
    if chance >= 1 or dense.ci_low > chance:
        return None
    return (
        f"The dense model's {metric.name} is {dense.value:.4g}, no better than chance among {shape[axis]} classes "
        f"({chance:.3g}): are trained weights loaded, and are inputs and labels those that it was trained with? "
        "Drops mean nothing here."
    )


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
