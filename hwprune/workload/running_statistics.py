"""Batch norms whose statistics fit other data than the user's: found, told, and estimated anew.

A model's running statistics may come from augmented images, from an average that had not converged, or from another data set.
Pruned models are compensated towards the dense one, and keep what it lost by that.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune.common import formatting
from hwprune.errors import UsageError, WorkloadError, described
from hwprune.latency.samples import read_batches
from hwprune.workload import scoring
from hwprune.workload.metrics import Metric
from hwprune.workload.workload import Inputs, Workload, all_tensors

EXAMPLES = 1000
"""Validation examples, at least if there are so many, on which both models are compared."""
FEWEST = 30
"""With fewer examples nothing is said."""
CALIBRATED = 2048
"""Calibration examples that are used, at most."""
BATCH = 256
"""Examples at a time, at most, where batches can be divided."""
LEAST = 0.003
"""Gain that is worth a word: of a share, or of another metric as a part of its value."""


def refresh_batch_norms(workload: Workload) -> Workload:
    """The workload with a copy of its model whose batch norms have the statistics of the calibration data.

    Mean and variance are averages over batches of the first 2,048 examples, mixed whatever their order was; each norm
    sees the batch statistics of those before it (Li et al. 2020, EagleEye). That helps where the running statistics are bad, and
    harms where they were made with augmentation that the network needs: a search says when the validation split shows a gain.
    Norms that the data does not reach keep what they have.

    >>> workload = hwprune.refresh_batch_norms(workload)  # doctest: +SKIP

    Raises:
        UsageError: the model has no batch norms, or batches of one example tell no variance.
        WorkloadError: the model can't take the calibration data.
    """
    model = copy.deepcopy(workload.model).eval()
    norms = batch_norms(model)
    if not norms:
        raise UsageError(f"{workload.name} has no batch norms with running statistics")
    before = [{name: x.clone() for name, x in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
    device = _device(model)
    seen = 0
    with torch.no_grad():
        for inputs in _evenly(workload):
            count = len(inputs[0]) if inputs[0].ndim else 1
            seen += count
            for norm in norms:
                norm.momentum = count / seen  # the average over examples
            try:
                model(*(x.to(device) for x in inputs))
            except Exception as error:  # the model raises what it likes
                if "more than 1 value per channel" in str(error):
                    raise UsageError(
                        "batch norms can't be estimated from batches of one example: give the calibration data larger batches"
                    ) from None
                raise WorkloadError(f"{workload.name} can't take its calibration data: {described(error)}") from error
    for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
        norm.momentum = momentum
        if not int(norm.num_batches_tracked):  # type: ignore[arg-type]  # a buffer
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)
    return dataclasses.replace(workload, model=model.eval())


def _evenly(workload: Workload) -> Iterator[Inputs]:
    """Batches of the calibration data in an order that depends on the examples alone, as large as the loader's first one.

    Loaders shuffle, or go class by class: the same examples give the same statistics, and each batch holds some of all.
    """
    taken: list[Inputs] = []
    for inputs, _ in workload.batches("calibration"):
        taken.append(inputs)
        if sum(len(x[0]) if x[0].ndim else 1 for x in taken) >= CALIBRATED:
            break
    first = taken[0]
    if any(
        not x.ndim or len(x) != len(one[0]) or x.shape[1:] != y.shape[1:]
        for one in taken
        for x, y in zip(one, first, strict=True)
    ):
        yield from taken
        return
    columns = [torch.cat(column)[:CALIBRATED] for column in zip(*taken, strict=True)]
    keys = columns[0].double().flatten(1).mean(dim=1)
    order = keys.argsort(stable=True)
    size = min(len(first[0]), BATCH)
    count = max(len(order) // size, 1)
    for number in range(count):  # every count-th example, by size of the key
        picked = order[number::count][:size]
        yield tuple(column[picked] for column in columns)


def advice(workload: Workload, metric: Metric, file: Path, dense: scoring.Outputs, targets: Sequence[Any]) -> str | None:
    """What a user should know where the dense model is better with fresh statistics, beyond the interval of the difference.

    Args:
        file: evaluation samples.
        dense, targets: the dense model's outputs on them, and what is right, batch by batch.
    """
    if metric.agreement or any(target is None for target in targets) or not batch_norms(workload.model):
        return None
    try:
        return _compared(workload, metric, file, dense, targets)
    except Exception:  # advice must never end a search; what is wrong with the data is told elsewhere
        return None


def _compared(workload: Workload, metric: Metric, file: Path, dense: scoring.Outputs, targets: Sequence[Any]) -> str | None:
    sizes = [len(batch[0]) for batch in dense]
    chosen: set[int] = set()
    looked_at = 0
    for place in torch.randperm(len(sizes), generator=torch.Generator().manual_seed(0)).tolist():
        if looked_at >= EXAMPLES:
            break
        chosen.add(place)
        looked_at += sizes[place]
    if looked_at < FEWEST:
        return None
    model = refresh_batch_norms(workload).model
    found: dict[int, tuple[torch.Tensor, ...]] = {}
    for place, (_, inputs) in enumerate(read_batches(str(file))):
        if place in chosen:
            found[place] = _outputs(model, [torch.from_numpy(x) for x in inputs])
    mine, theirs, right = ([each[place] for place in sorted(chosen)] for each in (found, dense, targets))
    drop = scoring.paired_drop(metric, mine, theirs, right)
    before, after = (scoring.score(metric, outputs, right, theirs).value for outputs in (theirs, mine))
    share = formatting.is_share(before, higher_is_better=metric.higher_is_better)
    if not drop.ci_high < 0 or -drop.value < LEAST * (1.0 if share else abs(before)):
        return None
    was, now = (formatting.percent(x) if share else f"{x:.4g}" for x in (before, after))
    where = "validation" if looked_at == sum(sizes) else f"{looked_at:,} of {sum(sizes):,} validation examples"
    return (
        f"the running statistics of the model's batch norms are not those of your data: estimated anew on the calibration data, "
        f"the dense model scores {now} instead of {was} on {where}. Pruned models aim at the dense one: to search from the "
        "better one, put workload = hwprune.refresh_batch_norms(workload) into your workload file"
    )


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """All outputs of a batch, which is divided where it is large."""
    device, length = _device(model), len(inputs[0])
    parts = [slice(None)]
    if all(len(x) == length for x in inputs):
        parts = [slice(start, start + BATCH) for start in range(0, length, BATCH)]
    made = [[x.cpu() for x in all_tensors(model(*(x[part].to(device) for x in inputs)))] for part in parts]
    return tuple(made[0] if len(made) == 1 else (torch.cat(column) for column in zip(*made, strict=True)))


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Those of its modules that have running statistics."""
    return [
        part
        for part in model.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats and part.running_mean is not None
    ]
