"""Batches of a workload's data: how many, whether they can be split, and a random sample of them."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import torch

from hwprune.errors import WorkloadError
from hwprune.workload.workload import Inputs, Workload


def example_count(workload: Workload) -> int:
    """Examples of the calibration data, without reading them where that is possible."""
    loader: Any = workload.calibration
    if isinstance(loader, (list, tuple)):
        return sum(_size(item) for item in loader)
    sampler = getattr(loader, "sampler", None)
    batch_size = getattr(loader, "batch_size", None)
    with contextlib.suppress(TypeError):
        if batch_size and sampler is not None:
            return min(len(sampler), len(loader) * int(batch_size))
    return sum(len(inputs[0]) if inputs[0].ndim else 1 for inputs, _ in workload.batches("calibration"))


def splittable(inputs: Inputs) -> bool:
    """Does every input hold one entry an example?"""
    return all(x.ndim and len(x) == len(inputs[0]) for x in inputs)


def check_batch(workload: Workload, *, free: bool, count: int) -> None:
    """A model that was captured for one batch size runs with that one only. Raises `WorkloadError`."""
    example = workload.example_inputs[0]
    if not free and example.ndim and count != len(example):
        raise WorkloadError(
            f"a calibration batch of workload {workload.name!r} has {count} examples; the model computes with "
            f"{len(example)} only, as in example_inputs: give batches of that size (drop_last=True leaves out a smaller last one)"
        )


def sample(workload: Workload, split: str, most: int, most_bytes: int, seed: int = 0) -> list[tuple[Inputs, Any]]:
    """Random examples of a split, in batches of the size of its first one; always the same ones for a seed.

    Examples, because batches may be sorted by class; whole batches where they can't be split. The split is read once and to its
    end, and no more than the sample is kept (a reservoir, Vitter 1985).

    Args:
        most, most_bytes: the sample holds no more examples and bytes of inputs than these, but one batch at least.
    """
    draw = random.Random(seed)
    kept: list[tuple[Inputs, Any]] = []
    seen = size = room = 0
    for inputs, targets in workload.batches(split):
        count = len(inputs[0]) if inputs[0].ndim else 1
        divided = splittable(inputs) and isinstance(targets, torch.Tensor) and targets.ndim > 0 and len(targets) == count
        units = count if divided else 1
        if not room:
            bytes_each = max(1, sum(x.numel() * x.element_size() for x in inputs) // units)
            room = max(units, min(most * units // count, most_bytes // bytes_each))
            size = units
        for i in range(units):
            seen += 1
            place = len(kept) if len(kept) < room else draw.randrange(seen)
            if place >= room:
                continue
            # Copies, because a view of one example keeps its whole batch in memory.
            one = (tuple(x[i : i + 1].clone() for x in inputs), targets[i : i + 1].clone()) if divided else (inputs, targets)
            kept[place : place + 1] = [one]
    if len({tuple(x.shape[1:] for x in inputs) for inputs, _ in kept}) > 1:
        size = 1  # texts of several lengths don't go into one batch
    groups = [kept[start : start + size] for start in range(0, len(kept) - size + 1, size)]
    return [_joined(group) if size > 1 else group[0] for group in groups]


def _joined(examples: list[tuple[Inputs, Any]]) -> tuple[Inputs, Any]:
    """Examples as one batch."""
    inputs = tuple(torch.cat(column) for column in zip(*(one for one, _ in examples), strict=True))
    return inputs, torch.cat([targets for _, targets in examples])


def _size(item: Any) -> int:
    while isinstance(item, (list, tuple)) and item:
        item = item[0]
    return len(item) if isinstance(item, torch.Tensor) and item.ndim else 1
