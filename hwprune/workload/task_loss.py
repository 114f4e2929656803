"""The loss of a workload's task: the user's own, or the one that goes with how its outputs are read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hwprune.errors import WorkloadError
from hwprune.workload.reading import (
    CLASSES,
    DECISIONS,
    Reading,
    are_distributions,
    by_labels,
    first_answer,
    given_axis,
    with_classes,
)
from hwprune.workload.workload import Workload, all_tensors, first_tensor

Loss = Callable[[Any, Any], torch.Tensor]
LOOKED_AT = 8
"""Batches of the split whose outputs say how they are read."""


def task_loss(workload: Workload, module: nn.Module, split: str = "validation") -> Loss:
    """``loss(output, targets)`` -> scalar, for training and gradients.

    Where the user gave none, it is the cross entropy along the dim that the labels' shape says, of one column that of a yes or no
    (a cross entropy over one class is zero for any model), and the squared error of numbers.

    Args:
        module: the dense model, in eval mode, whose outputs say whether they are probabilities.
    """
    if workload.loss is not nn.functional.cross_entropy:
        return workload.loss
    reading = _reading(workload, module, split)
    if reading is None and split == "validation" and workload.train is not None:  # it may have no labels
        reading = _reading(workload, module, "train")

    def loss(output: torch.Tensor, targets: Any) -> torch.Tensor:
        if reading is None or not isinstance(targets, torch.Tensor):
            return workload.loss(output, targets)
        scores = reading.class_scores(output)
        if scores is not None:
            return nn.functional.cross_entropy(scores, reading.labels(targets, output).long())
        if not targets.is_floating_point() or targets.numel() != output.numel():
            return workload.loss(output, targets)
        numbers = workload.scoring.reads and workload.scoring.name in ("mae", "mse", "r2", "psnr")
        soft = targets.shape == output.shape and not numbers and are_distributions([targets], 1 if targets.ndim > 1 else 0)
        return workload.loss(output, targets) if soft else nn.functional.mse_loss(output, targets.reshape(output.shape))

    return loss


def loss_input(workload: Workload, result: Any) -> Any:
    """What the loss takes of a model's result: the first answer, or, of a metric that looks at all outputs, the whole as it is.

    The cross entropy that a workload has by default takes one tensor in any case.
    """
    return result if workload.scoring.whole and workload.loss is not nn.functional.cross_entropy else first_tensor(result)


@torch.no_grad()
def _reading(workload: Workload, module: nn.Module, split: str) -> Reading | None:
    """None: nothing says how the output is read, or there are no labels."""
    device = next((p.device for p in itertools.chain(module.parameters(), module.buffers())), torch.device("cpu"))
    outputs, targets = [], []
    for inputs, target in itertools.islice(workload.batches(split), LOOKED_AT):
        if not isinstance(target, torch.Tensor):
            return None
        found = all_tensors(module(*(x.to(device) for x in inputs)))
        outputs.append(found[first_answer(found)].cpu())
        targets.append(target)
    said = given_axis(workload.scoring, 0, outputs[0].shape)
    if isinstance(said, int):
        return with_classes(0, outputs, said)
    try:
        reading = by_labels(outputs, [target.cpu() for target in targets], 0)
    except WorkloadError:  # two dims could be the classes': the user's own loss, or a metric, will say
        return None
    return reading if reading.kind in (CLASSES, DECISIONS) else Reading(0, reading.kind)
