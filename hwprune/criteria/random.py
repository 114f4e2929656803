"""Random scores: what every criterion must beat."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import final

import torch

from hwprune.criteria.base import Criterion
from hwprune.layers.part import Part, producers
from hwprune.layers.statistics import LayerStatistics


@final
class Random(Criterion):
    """Uniform in [0, 1). Seeded by the weights' own bytes and ``seed``: repeatable, and different for each layer."""

    name = "random"
    ranking = "random"
    description = "uniform random scores, repeatable"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        return self._draw([weight], tuple(weight.shape))

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return self._draw([part.slices() for part in producers(parts)], (parts[0].size,))

    def _draw(self, weights: Sequence[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        checksum = self.seed
        for weight in weights:
            checksum = zlib.crc32(weight.detach().float().cpu().contiguous().numpy().tobytes(), checksum)
        return torch.rand(shape, generator=torch.Generator().manual_seed(checksum))
