"""Batches of calibration data: how many, and whether they can be split."""

from __future__ import annotations

import contextlib
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


def _size(item: Any) -> int:
    while isinstance(item, (list, tuple)) and item:
        item = item[0]
    return len(item) if isinstance(item, torch.Tensor) and item.ndim else 1
