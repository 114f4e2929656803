"""The train split, epoch by epoch: the same order again for the same seed, whatever came before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from hwprune.errors import WorkloadError
from hwprune.workload.workload import Workload

Batch = tuple[tuple[torch.Tensor, ...], Any]
"""(inputs, targets)."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of a workload's train split."""

    workload: Workload
    seed: int

    def count(self) -> int:
        """Batches in an epoch. Raises `WorkloadError` if there is no train split."""
        loader: Any = self.workload.train
        if loader is None:
            raise WorkloadError(
                f"workload {self.workload.name!r} has no train data: recovery training needs hwprune.Workload(train=loader)"
            )
        with contextlib.suppress(TypeError):
            if count := len(loader):
                return int(count)
        return sum(1 for _ in self.workload.batches("train"))

    def begin(self, epoch: int) -> None:
        """Everything random of an epoch follows from its number: dropout, a loader's shuffling, its own generators."""
        seed = self._seed_of(epoch)
        torch.manual_seed(seed)
        loader = self.workload.train
        for holder in (loader, getattr(loader, "sampler", None)):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)

    def of(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch. A list of batches is shuffled; a loader does so itself, with the seed that `begin` set."""
        loader = self.workload.train
        if isinstance(loader, (list, tuple)):
            draw = torch.Generator().manual_seed(self._seed_of(epoch))
            order = torch.randperm(len(loader), generator=draw).tolist()
            return replace(self.workload, train=[loader[place] for place in order]).batches("train")
        return self.workload.batches("train")

    def _seed_of(self, epoch: int) -> int:
        return self.seed * 100_003 + epoch
