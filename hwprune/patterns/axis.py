"""Whole indices of an axis: what the cut physically removes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.errors import UsageError
from hwprune.patterns.base import Pattern, check_scores, keep_highest, removed_count

DESCRIPTIONS = {
    "token": "tokens of a transformer that get least attention, chosen anew for each input (EViT)",
    "merge": "tokens of a transformer that are most alike, merged into their mean, anew for each input (ToMe)",
}


@final
class WholeIndex(Pattern):
    """The indices with the lowest scores go; scores are 1-D, one for each index of the axis."""

    def __init__(self, role: str) -> None:
        self.name = self.role = role
        self.description = DESCRIPTIONS.get(role, f"whole {role} indices, physically removed")

    def keep_mask(self, scores: torch.Tensor, sparsity: float | None = None) -> torch.Tensor:
        check_scores(scores)
        if scores.ndim != 1:
            raise UsageError(f"pattern {self.name} takes one score an index (1-D), got shape {tuple(scores.shape)}")
        return keep_highest(scores, removed_count(len(scores), sparsity, self.name))

    def inadmissible(self, shape: Sequence[int]) -> str | None:
        return None if len(shape) == 1 else "it needs one score an index"
