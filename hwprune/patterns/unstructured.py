"""Single weights, anywhere in the layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.patterns.base import Pattern, check_scores, keep_highest, removed_count


@final
class Unstructured(Pattern):
    """The lowest scores of the whole layer go."""

    name = "unstructured"
    description = "single weights, ranked over the layer"

    def keep_mask(self, scores: torch.Tensor, sparsity: float | None = None) -> torch.Tensor:
        check_scores(scores)
        removed = removed_count(scores.numel(), sparsity, self.name)
        return keep_highest(scores.reshape(-1), removed).reshape(scores.shape)

    def inadmissible(self, shape: Sequence[int]) -> str | None:
        return None


@final
class UnstructuredRow(Pattern):
    """The lowest scores of every output go, the same number of each (what Wanda was made for)."""

    name = "unstructured:row"
    description = "single weights, ranked within each output"
    scope = "row"

    def keep_mask(self, scores: torch.Tensor, sparsity: float | None = None) -> torch.Tensor:
        check_scores(scores)
        rows = scores.reshape(len(scores), -1) if scores.ndim > 1 else scores[None]
        return keep_highest(rows, removed_count(rows.shape[1], sparsity, self.name)).reshape(scores.shape)

    def inadmissible(self, shape: Sequence[int]) -> str | None:
        return None
