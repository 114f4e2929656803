"""Batch-norm re-estimation: the running statistics of the dense model are wrong for the pruned one.

One pass in train mode over the calibration data without gradients; the statistics become the average over the
batches, weighted by their sizes (methods 2.3; Li et al. 2020, EagleEye, "adaptive batch normalization").
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import fx

from hwprune.compensation.base import Batches, Compensation
from hwprune.errors import CandidateFailure

_BATCH_NORM = torch.ops.aten.batch_norm.default


class _Reestimate(fx.Interpreter):
    """Runs the graph with batch statistics and averages them into the buffers.

    Dropout and the like stay in eval mode: only batch norm is told to train.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.momentum = 1.0

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is _BATCH_NORM and args[3] is not None:
            x, weight, bias, mean, var, _, _, *rest = args
            args = (x, weight, bias, mean, var, True, self.momentum, *rest)
        return super().call_function(target, args, kwargs)


@final
class BatchNorm(Compensation):
    name = "batchnorm"
    description = "batch-norm statistics estimated anew on the calibration data"

    def applies(self, module: fx.GraphModule) -> bool:
        return any(node.target is _BATCH_NORM and node.args[3] is not None for node in module.graph.nodes)

    @torch.no_grad()
    def apply(self, module: fx.GraphModule, batches: Batches) -> None:
        module.eval()
        interpreter = _Reestimate(module)
        seen = 0
        for inputs in batches():
            size = len(inputs[0])
            seen += size
            interpreter.momentum = size / seen  # the running average weighted by batch size; 1 at first
            interpreter.run(*inputs)
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point() and not bool(torch.isfinite(buffer).all()):
                raise CandidateFailure("prune", f"{name} is not finite after batch-norm re-estimation on {seen} examples")
