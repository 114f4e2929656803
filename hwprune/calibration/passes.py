"""Passes over the calibration data, layer by layer, in batches that fit into memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from hwprune.calibration.gram import Calibration, GramSums
from hwprune.calibration.relevance import relevance
from hwprune.layers import layer as layer_table
from hwprune.layers.layer import Layer
from hwprune.structure.model_graph import ModelGraph
from hwprune.workload.batches import check_batch, example_count, splittable
from hwprune.workload.workload import Inputs, Workload

FORWARD_EXAMPLES = 256
GRADIENT_EXAMPLES = 32
"""Examples run at once; a gradient pass holds the inputs of every layer."""
Progress = Callable[[int, int], None]
"""(examples seen, examples in all)"""


class CalibrationPass:
    """Calibration data in batches, and the layers of the model that reads them."""

    def __init__(
        self,
        graph: ModelGraph,
        workload: Workload,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.graph = graph
        self.module = graph.module
        self.workload = workload
        self.layers = layer_table.find(self.module, graph.matrices)
        self.by_node = {node: layer for layer in self.layers.values() for node in layer.nodes}
        self.total = example_count(workload)
        self.seed = seed
        self.progress = progress
        self.device = next(iter(workload.model.parameters()), torch.empty(0)).device

    def batches(self, size: int) -> Iterator[tuple[Inputs, Any]]:
        """Calibration data in batches of at most ``size`` examples, where the model's batch is free."""
        free = self.module.meta.get("free_batch", True)
        seen = 0
        for given, targets in self.workload.batches("calibration"):
            inputs = tuple(x.to(self.device) for x in given)
            count = len(inputs[0]) if inputs[0].ndim else 1
            check_batch(self.workload, free=free, count=count)
            splits = splittable(inputs) and free
            whole = not isinstance(targets, torch.Tensor) or len(targets) != count
            for start in range(0, count, size) if splits and (not whole or targets is None) else (None,):
                if start is None:
                    yield inputs, targets
                    seen += count
                else:
                    part = slice(start, start + size)
                    yield tuple(x[part] for x in inputs), None if targets is None else targets[part].to(self.device)
                    seen += min(size, count - start)
                if self.progress is not None:
                    self.progress(seen, max(seen, self.total))

    @torch.no_grad()
    def forward(self, layers: Sequence[Layer], *, influence: bool) -> Calibration:
        """One pass for the Gram matrices of ``layers`` and the influence of branches."""
        generator = torch.Generator().manual_seed(self.seed)
        by_relevance = any(not x.is_floating_point() for x in self.workload.example_inputs)
        sums: dict[Any, GramSums] = {}
        which: dict[str, GramSums] = {}
        for layer in layers:
            key = (layer.inputs, layer.geometry, layer.batch_dim) if layer.inputs[0] else layer.name
            which[layer.name] = sums.setdefault(key, GramSums(layer))
        summed_nodes = {node for layer_sums in sums.values() for node in layer_sums.layer.nodes}
        sharing: dict[str, list[str]] = {}  # layers that read the same tensor, by the node whose input is looked at
        for layer in layers:
            for node, first in zip(layer.nodes, which[layer.name].layer.nodes, strict=True):
                sharing.setdefault(first, []).append(node)
        branches = {branch.name: branch.side for branch in self.graph.branches} if influence else {}
        cosines: dict[str, tuple[float, int]] = {}
        relevant: dict[str, torch.Tensor] = {}
        share, examples = 1.0, 0

        def visit(name: str, arguments: tuple[Any, ...], result: Any) -> None:
            if name in summed_nodes:
                layer = self.by_node[name]
                which[layer.name].add(arguments[layer.argument].detach(), share, generator, relevant.get(name))
            if name in branches:
                total, count = cosines.get(name, (0.0, 0))
                cosine = _cosines(arguments[1 - branches[name]], result)
                cosines[name] = (total + float(cosine.sum()), count + cosine.numel())

        with full_precision():
            for inputs, _ in self.batches(GRADIENT_EXAMPLES if by_relevance else FORWARD_EXAMPLES):
                count = len(inputs[0]) if inputs[0].ndim else 1
                share = count / max(self.total, count)
                examples += count
                relevant = relevance(self.module, self.by_node, sharing, inputs) if by_relevance and summed_nodes else {}
                layer_table.run(self.module, inputs, [*summed_nodes, *branches], visit)
        statistics_of = {id(layer_sums): layer_sums.statistics() for layer_sums in sums.values() if layer_sums.rows}
        return Calibration(
            {
                name: dataclasses.replace(statistics_of[id(layer_sums)], weight_outputs=self.layers[name].matrix.shape[0])
                for name, layer_sums in which.items()
                if id(layer_sums) in statistics_of
            },
            {name: max(0.0, 1 - total / max(1, count)) for name, (total, count) in cosines.items()},
            examples,
        )


def _cosines(skip: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Cosine at every position: over the channels of images, over the features of everything else."""
    dim = 1 if skip.ndim in (4, 5) else -1
    return torch.nn.functional.cosine_similarity(skip.float(), result.float(), dim=dim)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """float32 products in float32: reduced precision (TF32, bfloat16) would spoil Gram matrices (methods 8.1.5)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
