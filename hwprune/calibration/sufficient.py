"""How many calibration examples a model's layers want, and inputs of the train split where calibration has fewer.

A least squares repair of a layer with 1,536 inputs learns some hundred sentences by heart; with some thousand it gains on all
others (`benchmarks/compensation.py minilm --examples 512,2048`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import fx

from hwprune.common.contents import content
from hwprune.errors import WorkloadError
from hwprune.layers.layer import Layer
from hwprune.workload import batches
from hwprune.workload.workload import Inputs, Workload

EXAMPLES_PER_INPUT = 1.3
"""Examples for each input of a linear layer: a judgement, from MiniLM."""
POSITIONS_PER_INPUT = 64
"""Positions (tokens, patches) that are enough for each input, however few examples they are of."""
MOST_EXAMPLES = 2048
"""Examples that are used at most: every candidate is run on them."""
ENOUGH_FOR_OPTIONS = 512
"""Examples up to which the statistics that options are solved from get more: plain OBS gains next to nothing from more
(`benchmarks/compensation.py minilm --examples 512,2048`, rows ``quick``), and collecting them takes a pass with gradients."""


def wanted_examples(layers: Mapping[str, Layer], module: fx.GraphModule) -> int:
    """Examples that the widest linear layer wants; 0 where most weights are in convolutions, which see many positions of each."""
    linear = [layer for layer in layers.values() if layer.matrix.kind != "conv"]
    if 2 * sum(prod(layer.matrix.shape) for layer in linear) < sum(prod(layer.matrix.shape) for layer in layers.values()):
        return 0
    known = {node.name: node for node in module.graph.nodes}
    return max((_of_layer(layer, known) for layer in linear), default=0)


def _of_layer(layer: Layer, known: Mapping[str, fx.Node]) -> int:
    width = prod(layer.matrix.shape[1:])
    node = known.get(layer.nodes[0])
    source = node.args[layer.argument] if node is not None and len(node.args) > layer.argument else None
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    positions = 1
    if isinstance(value, torch.Tensor) and value.ndim > 2:
        positions = max(1, prod(int(size) for size in value.shape[1:-1]))
    return min(round(EXAMPLES_PER_INPUT * width), MOST_EXAMPLES, POSITIONS_PER_INPUT * width // positions)


def with_train_inputs(workload: Workload, wanted: int) -> tuple[Workload, int]:
    """The workload with so many calibration examples, as far as its train split gives them; and how many were added.

    The same ones every time: a random draw from a list, or from a data set that gives an index the same example twice (one that
    augments does not). Examples that calibration has already are left out, because a fit to one and a check by the other would
    confirm anything.
    """
    if wanted <= 0 or workload.train is None:
        return workload, 0
    try:
        return _enlarged(workload, wanted)
    except WorkloadError:  # whoever needs the data will say what is wrong with them
        return workload, 0


def _enlarged(workload: Workload, wanted: int) -> tuple[Workload, int]:
    missing = wanted - batches.example_count(workload)
    if missing <= 0:
        return workload, 0
    given = list(workload.batches("calibration"))
    if not all(_divisible(inputs, targets) for inputs, targets in given):
        return workload, 0
    seen = {key for inputs, _ in given for key in _keys(inputs)}
    labelled = any(targets is not None for _, targets in given)
    added, count = [], 0
    for inputs, targets in replace(workload, train=_Drawn(workload.train)).batches("train"):
        if not _divisible(inputs, targets) or (labelled and targets is None):
            return workload, 0
        fresh: list[int] = []
        for place, key in enumerate(_keys(inputs)):
            if key not in seen and count + len(fresh) < missing:
                seen.add(key)
                fresh.append(place)
        if fresh:
            rows = torch.tensor(fresh)
            added.append((tuple(x[rows] for x in inputs), None if targets is None else targets[rows]))
            count += len(fresh)
        if count >= missing:
            break
    return (replace(workload, calibration=[*given, *added]), count) if added else (workload, 0)


def _divisible(inputs: Inputs, targets: Any) -> bool:
    alone = targets is None or (isinstance(targets, torch.Tensor) and targets.ndim > 0 and len(targets) == len(inputs[0]))
    return batches.splittable(inputs) and alone


def _keys(inputs: Inputs) -> list[bytes]:
    """What identifies each example."""
    arrays = [x.detach().cpu().contiguous().flatten(1) if x.ndim > 1 else x.detach().cpu()[:, None] for x in inputs]
    return [hashlib.sha256(b"".join(content(a[i]) for a in arrays)).digest() for i in range(len(inputs[0]))]


class _Drawn:
    """The batches of a split in a random order that is always the same; empty where that can't be had."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        loader: Any = self._loader
        if isinstance(loader, (list, tuple)):
            yield from (loader[i] for i in torch.randperm(len(loader), generator=generator).tolist())
            return
        dataset: Any = getattr(loader, "dataset", None)
        size: int | None = getattr(loader, "batch_size", None)
        collate: Any = getattr(loader, "collate_fn", None)
        if not (size and collate and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")) or not len(dataset):
            return
        order = torch.randperm(len(dataset), generator=generator).tolist()
        if not all(_same(dataset[i], dataset[i]) for i in order[:3]):
            return
        for start in itertools.count(0, size):
            if start >= len(order):
                return
            yield collate([dataset[i] for i in order[start : start + size]])


def _same(one: Any, other: Any) -> bool:
    mine, theirs = (torch.utils._pytree.tree_leaves(item) for item in (one, other))
    return len(mine) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else bool(a == b)
        for a, b in zip(mine, theirs, strict=True)
    )
