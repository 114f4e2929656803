"""Batch-norm re-estimation: the running statistics of the dense model are wrong for the pruned one.

They are estimated without gradients, on the calibration data (methods 2.3; Li et al. 2020, EagleEye, "adaptive batch
normalization"), but *relative to the dense model*: what is carried over is the change of mean and the ratio of variances between
the two models on the same data. Estimating them absolutely, as is usual, also moves a model that was not pruned at all: to the
distribution of the calibration data, which has no augmentation and may be a small or recompressed copy. (ResNet-20 on a JPEG copy
of CIFAR-10: 92.1 % dense, 88.9 % after an absolute re-estimation of the dense model, 92.1 % after this one.)

Norms are taken one after the other, each with the inputs that it gets when all before it are done; with the statistics of single
batches on the way, as in train mode, small batches or norms that had not converged would spoil the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import fx

from hwprune.compensation.base import Compensation, Context
from hwprune.compensation.lockstep import Steps, calibration_batches
from hwprune.errors import CandidateFailure

_BATCH_NORM = torch.ops.aten.batch_norm.default
_DENSE = "batch-norm statistics"
EXAMPLES = 64
"""Calibration examples that are used. Every example gives many positions, and what is carried over is a difference between two
models on the same data, in which most of the sampling noise cancels; and this pass is most of a candidate's pruning time.
(Sequential compensation, which finalists get, uses all of them.)"""
VARIANCE_FLOOR = 1e-3
"""Least ratio of variances: a channel that nearly died is not blown up."""

Moments = tuple[torch.Tensor, torch.Tensor]
"""Mean and variance of every channel, float64."""


def moments(inputs: Sequence[torch.Tensor]) -> Moments:
    """Mean and variance over all batches together, for each index of dim 1."""
    dims = [d for d in range(inputs[0].ndim) if d != 1]
    count = sum(x.numel() // x.shape[1] for x in inputs)
    mean = torch.stack([x.sum(dim=dims, dtype=torch.float64) for x in inputs]).sum(dim=0) / count
    centre = mean.to(inputs[0].dtype).reshape([1, -1] + [1] * (inputs[0].ndim - 2))
    square = torch.stack([(x - centre).square().sum(dim=dims, dtype=torch.float64) for x in inputs]).sum(dim=0)
    return mean, square / count


def carry_over(
    node: fx.Node,
    own: Moments,
    dense: Moments,
    module: fx.GraphModule,
    context: Context,
) -> None:
    """Set a batch norm's statistics to those of the dense model, changed as its inputs have changed.

    Args:
        own, dense: mean and variance of the inputs of both models on the same data.
    """
    mean_name, variance_name = (str(buffer.target) for buffer in node.args[3:5])  # type: ignore[union-attr]  # its buffers are nodes
    state, dense_state = dict(module.named_buffers()), dict(context.dense.named_buffers())
    positions = context.positions.get(mean_name)
    kept = torch.arange(len(dense_state[mean_name])) if positions is None else positions[0]
    mean = dense_state[mean_name][kept] + (own[0] - dense[0][kept])
    tiny = torch.finfo(torch.float32).tiny
    ratio = (own[1] / dense[1][kept].clamp(min=tiny)).clamp(min=VARIANCE_FLOOR)
    ratio = torch.where(dense[1][kept] > tiny, ratio, torch.ones_like(ratio))
    for name, value in ((mean_name, mean), (variance_name, dense_state[variance_name][kept] * ratio)):
        if not bool(torch.isfinite(value).all()):
            raise CandidateFailure("prune", f"{name} is not finite after batch-norm re-estimation")
        state[name].copy_(value)


@final
class BatchNorm(Compensation):
    name = "batchnorm"
    description = "batch-norm statistics estimated anew, relative to the dense model's, on the calibration data"

    def applies(self, module: fx.GraphModule) -> bool:
        return any(node.target is _BATCH_NORM and node.args[3] is not None for node in module.graph.nodes)

    @torch.no_grad()
    def apply(self, module: fx.GraphModule, context: Context) -> None:
        module.eval()
        batches = _first(calibration_batches(context), EXAMPLES)
        dense: dict[str, Moments] = context.cache.setdefault(_DENSE, {})
        if not dense:
            _walk(context.dense, batches, lambda node, node_moments: dense.__setitem__(node.name, node_moments))

        def visit(node: fx.Node, node_moments: Moments) -> None:
            if node.name in dense:
                carry_over(node, node_moments, dense[node.name], module, context)

        _walk(module, batches, visit)


def _first(batches: Sequence[tuple[torch.Tensor, ...]], examples: int) -> list[tuple[torch.Tensor, ...]]:
    """The first whole batches that hold so many examples."""
    taken: list[tuple[torch.Tensor, ...]] = []
    for batch in batches:
        if sum(len(inputs[0]) for inputs in taken) >= examples:
            break
        taken.append(batch)
    return taken


def _walk(module: fx.GraphModule, batches: Sequence[tuple[torch.Tensor, ...]], visit: Callable[[fx.Node, Moments], None]) -> None:
    """Show the moments of every batch norm's inputs before it is computed."""
    steps = Steps(module, batches)
    last = max((i for i, node in enumerate(steps.nodes) if node.target is _BATCH_NORM), default=-1)
    while steps.at <= last:
        node = steps.nodes[steps.at]
        if node.target is _BATCH_NORM and node.args[3] is not None:
            visit(node, moments([arguments[0] for arguments in steps.before(node.name)]))
        steps.step()
