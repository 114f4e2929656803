"""Criteria from the layer's own curvature, the Gram matrix of its inputs: OBS and SparseGPT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.criteria.base import Criterion, total
from hwprune.layers.part import READS, Part, grouped
from hwprune.layers.statistics import LayerStatistics
from hwprune.second_order import hessian


@final
class Obs(Criterion):
    """w^2 / (2 [H^-1]_ii): growth of the layer's squared error when one weight goes and the others of its row make up for it
    (Hassibi & Stork 1993).

    An axis takes ``tr(W_S (H^-1_SS)^-1 W_S^T) / 2`` of each index alone, in the layers that read it, relative to the size of
    their outputs. As a *method*, ``obs`` goes on greedily instead of scoring once.
    """

    name = "obs"
    ranking = "obs"
    description = "growth of the layer's error when the others make up for it"
    needs = ("gram",)
    kinds = (READS,)

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        layer_statistics = self._statistics(statistics)
        h = hessian.damp(layer_statistics.hessian(centred=False))
        diagonal = torch.stack([hessian.inverse(matrix).diagonal() for matrix in h])
        return (grouped(weight.detach().double(), layer_statistics.groups).square() / (2 * diagonal[:, None])).reshape(
            weight.shape
        )

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return total(_alone(part, statistics) for part, statistics in self._chosen(parts, READS))


def _alone(part: Part, statistics: LayerStatistics) -> torch.Tensor:
    plain = statistics.hessian(centred=part.centred)
    w = grouped(part.tensor.detach().double(), part.groups)
    size = float(((w @ plain) * w).sum())
    costs = torch.zeros(part.size, dtype=torch.float64)
    for h, rows in zip(hessian.damp(plain), w, strict=True):
        v = hessian.inverse(h)
        columns = part.columns
        blocks = v[columns[:, :, None], columns[:, None, :]]  # (n, k, k)
        picked = rows[:, columns].permute(1, 2, 0)  # (n, k, out / G)
        costs += (picked * torch.cholesky_solve(picked, hessian.cholesky(blocks))).sum(dim=(1, 2))
    return costs / max(2 * size, torch.finfo(torch.float64).tiny)


@final
class SparseGPT(Criterion):
    """w^2 / U_jj^2 with U the Cholesky factor of H^-1 (Frantar & Alistarh 2023): what the sweep would score if nothing had
    been updated.
    """

    name = "sparsegpt"
    ranking = "sparsegpt"
    description = "growth of the layer's error when the weights to its right make up for it"
    needs = ("gram",)
    kinds = (READS,)

    def scores(self, weight: torch.Tensor, statistics: LayerStatistics | None = None) -> torch.Tensor:
        layer_statistics = self._statistics(statistics)
        factor = hessian.reverse_factor(hessian.damp(layer_statistics.hessian(centred=False)), torch.float64)
        diagonal = factor.diagonal(dim1=1, dim2=2).flip(1)  # 1 / U_jj
        return (grouped(weight.detach().double(), layer_statistics.groups) * diagonal[:, None]).square().reshape(weight.shape)

    def axis_scores(self, parts: Sequence[Part]) -> torch.Tensor:
        return total(
            part.slices(self.scores(part.tensor, statistics)).sum(dim=1) for part, statistics in self._chosen(parts, READS)
        )
