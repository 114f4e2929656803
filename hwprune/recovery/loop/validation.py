"""Scores of a module on the validation split, in PyTorch."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hwprune.common.contents import content
from hwprune.errors import WorkloadError
from hwprune.records.measurement import Measurement
from hwprune.workload import scoring
from hwprune.workload.workload import Inputs, Workload, all_tensors

KEPT_BYTES = 1_000_000_000
"""Bytes of inputs that are kept, so that a loader that shuffles or augments is read once."""


@dataclass(slots=True)
class Validator:
    """Scores a module in PyTorch on the validation split: always on the same examples, in the same order."""

    workload: Workload
    dense: list[tuple[torch.Tensor, ...]] | None = None
    _kept: list[tuple[Inputs, Any]] | None = field(init=False, default=None)
    _digest: str = field(init=False, default="")

    def __call__(self, module: nn.Module) -> Measurement:
        """The metric.

        Raises:
            CandidateFailure: (stage ``evaluate``) outputs are not finite.
            WorkloadError: the loader yields other data each time, and too much to be kept.
        """
        outputs, targets = self._outputs(module)
        return scoring.score(self.workload.scoring, outputs, targets, self.dense, sure=False)

    def teach(self, teacher: nn.Module) -> None:
        """The dense model's outputs, which say how outputs are read, and are what some metrics compare with."""
        if self.workload.scoring.reads or self.workload.scoring.agreement:
            self.dense, _ = self._outputs(teacher)

    def better(self, value: float, than: float) -> bool:
        return self.workload.scoring.drop(than, value) < 0

    @torch.no_grad()
    def _outputs(self, module: nn.Module) -> tuple[list[tuple[torch.Tensor, ...]], list[Any]]:
        device = device_of(module)
        module.eval()
        outputs, targets = [], []
        for inputs, target in self._batches():
            outputs.append(tuple(leaf.cpu() for leaf in all_tensors(module(*(x.to(device) for x in inputs)))))
            targets.append(target)
        return outputs, targets

    def _batches(self) -> Iterator[tuple[Inputs, Any]]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[Inputs, Any]] = []
        digest, size = hashlib.sha256(), 0
        for inputs, target in self.workload.batches("validation"):
            size += sum(x.numel() * x.element_size() for x in inputs)
            if size <= KEPT_BYTES:
                kept.append((inputs, target))
            for x in inputs:
                digest.update(content(x))
            yield inputs, target
        if size <= KEPT_BYTES:
            self._kept = kept
        if self._digest and self._digest != digest.hexdigest():
            raise WorkloadError(
                f"the validation loader of workload {self.workload.name!r} yields other data each time (it shuffles, or "
                "augments), and too much to be kept: give it shuffle=False and no random augmentation"
            )
        self._digest = digest.hexdigest()


def device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in itertools.chain(module.parameters(), module.buffers())), torch.device("cpu"))
