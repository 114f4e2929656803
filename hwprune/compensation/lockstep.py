"""The dense model and a candidate, run side by side, node by node, over all calibration batches at once.

This way every layer of the candidate can be repaired with the inputs that it really gets, after everything before it has been
repaired, at the price of one pass over each model. All batches are held for the nodes that are still needed; how many examples
that allows is measured on the first batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from hwprune.compensation.base import Context
from hwprune.errors import CandidateFailure
from hwprune.workload.batches import splittable

MEMORY_LIMIT = 2_000_000_000
"""Bytes of activations of both models together."""
BATCH = 64

Inputs = tuple[torch.Tensor, ...]


class Steps:
    """One model, stepped through its nodes for all batches."""

    def __init__(self, module: fx.GraphModule, batches: Sequence[Inputs]) -> None:
        self.nodes = list(module.graph.nodes)
        self.runs = []
        for inputs in batches:
            run = fx.Interpreter(module)
            run.args_iter = iter(module.graph._codegen.process_inputs(*inputs))
            self.runs.append(run)
        self.at = 0

    def __contains__(self, name: str) -> bool:
        return any(node.name == name for node in self.nodes[self.at :])

    def before(self, name: str) -> list[tuple[Any, ...]]:
        """Run up to the named node, and return its arguments, batch by batch."""
        while self.nodes[self.at].name != name:
            self.step()
        return [run.fetch_args_kwargs_from_env(self.nodes[self.at])[0] for run in self.runs]

    def step(self) -> fx.Node:
        node: fx.Node = self.nodes[self.at]
        for run in self.runs:
            run.env[node] = run.run_node(node)
            for done in run.user_to_last_uses.get(node, ()):
                del run.env[done]
        self.at += 1
        return node

    def result(self, node: fx.Node) -> Any:
        """The value of a node of the first batch that was computed and is still needed."""
        return self.runs[0].env[node]

    @property
    def held(self) -> int:
        """Bytes of activations held now."""
        storages = {
            leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
            for run in self.runs
            for node, value in run.env.items()
            if node.op != "get_attr"
            for leaf in torch.utils._pytree.tree_leaves(value)
            if isinstance(leaf, torch.Tensor)
        }
        return sum(storages.values())


def calibration_batches(context: Context) -> list[Inputs]:
    """Calibration batches to run side by side; the same at every call."""
    if "batches" not in context.cache:
        context.cache["batches"] = choose_batches(context)
    batches: list[Inputs] = context.cache["batches"]
    return batches


def relevant_positions(context: Context, batch: int) -> Mapping[str, torch.Tensor]:
    """Positions that matter in that batch of `calibration_batches`; empty: all do."""
    if context.relevance is None:
        return {}
    by_batch: dict[int, Mapping[str, torch.Tensor]] = context.cache.setdefault("relevance", {})
    if batch not in by_batch:
        by_batch[batch] = context.relevance(calibration_batches(context)[batch])
    return by_batch[batch]


def choose_batches(context: Context, limit: int = MEMORY_LIMIT) -> list[Inputs]:
    """Calibration batches of at most `BATCH` examples, as many as the memory limit allows."""
    free = context.dense.meta.get("free_batch", True)
    batches: list[Inputs] = []
    allowed: float | None = None
    examples = 0
    for inputs in context.batches():
        count = len(inputs[0])
        whole = not free or not splittable(inputs)
        parts = [inputs] if whole else [tuple(x[s : s + BATCH] for x in inputs) for s in range(0, count, BATCH)]
        for part in parts:
            if allowed is None:
                allowed = limit / max(1, 2 * peak_bytes(context.dense, part) / len(part[0]))
            if examples and examples + len(part[0]) > allowed:
                return batches
            batches.append(part)
            examples += len(part[0])
    return batches


def peak_bytes(module: fx.GraphModule, inputs: Inputs) -> int:
    """Most bytes of activations that are held at once for these inputs."""
    steps = Steps(module, [inputs])
    peak = 0
    while steps.at < len(steps.nodes) - 1:
        steps.step()
        peak = max(peak, steps.held)
    return peak


Visit = Callable[[fx.Node, list[tuple[Any, ...]], list[tuple[Any, ...]]], None]
"""(node of the candidate, its arguments by batch, the dense model's)"""


@torch.no_grad()
def walk(module: fx.GraphModule, context: Context, names: set[str], visit: Visit) -> None:
    """Run both; ``visit`` may change what the node will read (in place) before it is computed.

    Raises:
        CandidateFailure: there are no calibration data.
    """
    batches = calibration_batches(context)
    if not batches:
        raise CandidateFailure("prune", "there are no calibration data to compensate with")
    module.eval()
    pruned, dense = Steps(module, batches), Steps(context.dense, batches)
    while pruned.at < len(pruned.nodes) - 1:  # the output node computes nothing
        node = pruned.nodes[pruned.at]
        if node.name in names and node.name in dense:
            visit(node, pruned.before(node.name), dense.before(node.name))
        pruned.step()
