"""Batch norms whose statistics fit other data than the user's: found, told, and estimated anew.

A model's running statistics may come from augmented images, from an average that had not converged, or from another data set.
Pruned models are compensated towards the dense one, and keep what it lost by that.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune.common import formatting
from hwprune.errors import UsageError
from hwprune.latency.samples import read_batches
from hwprune.workload import scoring
from hwprune.workload.metrics import Metric
from hwprune.workload.workload import Workload

EXAMPLES = 1000
"""Validation examples, at least, on which both models are compared."""


def refresh_batch_norms(workload: Workload) -> Workload:
    """The workload with a copy of its model whose batch norms have the statistics of the calibration data.

    They are averaged over the calibration batches, each norm behind the batch statistics of those before it (Li et al. 2020,
    EagleEye). That helps where the running statistics are bad, and harms where they were made with augmentation that the
    network needs: a search says when the validation split shows a gain.

    >>> workload = hwprune.refresh_batch_norms(workload)  # doctest: +SKIP

    Raises:
        UsageError: the model has no batch norms, or no calibration batch has two examples.
    """
    model = copy.deepcopy(workload.model).eval()
    norms = _batch_norms(model)
    if not norms:
        raise UsageError(f"{workload.name} has no batch norms with running statistics")
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
        norm.train()
    seen = 0
    with torch.no_grad():
        for inputs, _ in workload.batches("calibration"):
            if len(inputs[0]) > 1:  # of one example there is no variance
                model(*inputs)
                seen += 1
    if not seen:
        raise UsageError("batch norms can't be estimated from batches of one example: give the calibration data larger batches")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return dataclasses.replace(workload, model=model.eval())


def advice(workload: Workload, metric: Metric, file: Path, dense: scoring.Outputs, targets: Sequence[Any]) -> str | None:
    """What a user should know where the dense model is better with fresh statistics, beyond the interval of the difference.

    Args:
        file: evaluation samples.
        dense, targets: the dense model's outputs on them, and what is right, batch by batch.
    """
    if metric.agreement or any(target is None for target in targets) or not _batch_norms(workload.model):
        return None
    try:
        model = refresh_batch_norms(workload).model
    except UsageError:
        return None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    outputs: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad():
        for _, inputs in read_batches(str(file)):
            made = model(*(torch.from_numpy(x).to(device) for x in inputs))
            outputs.append(tuple(x.cpu() for x in (made if isinstance(made, tuple) else (made,))))
            if sum(len(batch[0]) for batch in outputs) >= EXAMPLES:
                break
    several = (outputs, dense[: len(outputs)], targets[: len(outputs)])
    drop = scoring.paired_drop(metric, *several)
    if not drop.ci_high < 0:
        return None
    before = scoring.score(metric, several[1], several[2], several[1]).value
    after = scoring.score(metric, outputs, several[2], several[1]).value
    share = formatting.is_share(before, higher_is_better=metric.higher_is_better)
    was, now = (formatting.percent(x) if share else f"{x:.4g}" for x in (before, after))
    return (
        f"the running statistics of the model's batch norms are not those of your data: estimated anew on the calibration data, "
        f"the dense model scores {now} instead of {was} on validation. Pruned models aim at the dense one: to search from the "
        "better one, put workload = hwprune.refresh_batch_norms(workload) into your workload file"
    )


def _batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [
        part
        for part in model.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats and part.running_mean is not None
    ]
