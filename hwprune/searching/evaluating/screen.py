"""The examples on which a candidate is looked at first: a random sample of the validation split, the same for all.

Leading batches would be no sample of a split that is sorted by class, nor would any batches of it. So examples are drawn one by
one and put together to batches of the same size, in a file of their own; the split itself keeps its order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hwprune.latency.samples import read_batches
from hwprune.searching.evaluating.early_stopping import SCREEN_EXAMPLES
from hwprune.searching.evaluating.scorer import Split
from hwprune.workload import sample_files

SEED = 0
SMALLEST_SPLIT = 3
"""A split with fewer than so many times the sample's examples is run at once."""


def draw(split: Split, file: Path) -> Split | None:
    """Store a random sample of a split's examples.

    Returns:
        the sample with its targets, and what the dense model gave for the same examples in the split's batches; None if the split
        is small, or its batches do not come apart into examples (shapes that differ, outputs without batch, targets that are no
        tensor).
    """
    counts = [len(batch[0]) if batch[0].ndim else 0 for batch in split.dense]
    size = counts[0]
    wanted = size * -(-SCREEN_EXAMPLES // max(size, 1))
    if not size or SMALLEST_SPLIT * wanted > sum(counts):
        return None
    picked = np.sort(np.random.default_rng(SEED).permutation(sum(counts))[:wanted])
    parts: list[list[torch.Tensor]] = []
    start, inputs = 0, 0
    for (_, arrays), outputs, target, count in zip(
        read_batches(str(split.file)), split.dense, split.targets, counts, strict=True
    ):
        rows = torch.from_numpy(picked[(picked >= start) & (picked < start + count)] - start)
        start, inputs = start + count, len(arrays)
        columns = [*map(torch.from_numpy, arrays), *outputs, *([] if target is None else [target])]
        if not all(isinstance(x, torch.Tensor) and x.ndim and len(x) == count for x in columns):
            return None
        if len(rows):
            parts.append([x[rows] for x in columns])
    return _put_together(parts, inputs, size, file, labelled=split.targets[0] is not None)


def _put_together(parts: list[list[torch.Tensor]], inputs: int, size: int, file: Path, *, labelled: bool) -> Split | None:
    """Examples as batches of ``size``; None if they differ in more than their number.

    Args:
        parts: examples as columns: inputs, outputs, and targets if they are ``labelled``.
    """
    kinds = {tuple((x.shape[1:], x.dtype) for x in part) for part in parts}
    if len(kinds) != 1:
        return None
    columns = [torch.split(torch.cat(column), size) for column in zip(*parts, strict=True)]
    batches = list(zip(*columns, strict=True))
    targets: list[Any] = [batch[-1] if labelled else None for batch in batches]
    outputs = [batch[inputs : len(batch) - labelled] for batch in batches]
    given = [(batch[:inputs], target) for batch, target in zip(batches, targets, strict=True)]
    return Split(file, sample_files.write_batches(given, file), outputs)
