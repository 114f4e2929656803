"""Scores of a module on the validation split, in PyTorch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hwprune.records.measurement import Measurement
from hwprune.workload import scoring
from hwprune.workload.workload import Workload


@dataclass(slots=True)
class Validator:
    """Scores a module in PyTorch on the validation split."""

    workload: Workload
    dense: list[tuple[torch.Tensor, ...]] | None = None

    def __call__(self, module: nn.Module) -> Measurement:
        """The metric. Raises `CandidateFailure` (stage ``evaluate``) if outputs are not finite."""
        outputs, targets = self._outputs(module)
        return scoring.score(self.workload.scoring, outputs, targets, self.dense)

    def teach(self, teacher: nn.Module) -> None:
        """The dense model's outputs, for metrics that compare with them."""
        if self.workload.scoring.agreement:
            self.dense, _ = self._outputs(teacher)

    def better(self, value: float, than: float) -> bool:
        return self.workload.scoring.drop(than, value) < 0

    @torch.no_grad()
    def _outputs(self, module: nn.Module) -> tuple[list[tuple[torch.Tensor, ...]], list[Any]]:
        device = device_of(module)
        module.eval()
        outputs, targets = [], []
        for inputs, target in self.workload.batches("validation"):
            leaves = torch.utils._pytree.tree_leaves(module(*(x.to(device) for x in inputs)))
            outputs.append(tuple(leaf.cpu() for leaf in leaves if isinstance(leaf, torch.Tensor)))
            targets.append(target)
        return outputs, targets


def device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in itertools.chain(module.parameters(), module.buffers())), torch.device("cpu"))
