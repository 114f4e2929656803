"""The interface of a pattern."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
import torch

from hwprune.errors import UsageError


class Pattern(abc.ABC):
    """A rule that says which weights go together, and from their scores which of them stay.

    Attributes:
        block: (outputs, inputs) that are removed together.
        scope: weights that compete: ``layer``, ``row`` (one output), or ``group`` (M consecutive inputs of an output).
        group: (N, M) of scope ``group``.
        permutes: may the inputs be reordered first, so that more of what matters is kept?
    """

    name: str
    description: str
    block: tuple[int, int] = (1, 1)
    scope: str = "layer"
    group: tuple[int, int] | None = None
    permutes: bool = False

    @abc.abstractmethod
    def keep_mask(self, scores: torch.Tensor, sparsity: float | None = None) -> torch.Tensor:
        """Bool tensor of the shape of ``scores``, True = stays: the highest scores do.

        Equal scores: the lower flat index stays. ``sparsity`` is the fraction removed; patterns that fix it
        (N:M) take None. The number removed is ``round(sparsity * n)``, and at least one weight stays.

        Raises:
            UsageError: NaN or negative scores, a sparsity outside [0, 1), or a shape the pattern does not fit.
        """

    @abc.abstractmethod
    def inadmissible(self, shape: Sequence[int]) -> str | None:
        """The reason why the pattern does not fit a weight of this shape, or None if it does."""

    @property
    def fixed_sparsity(self) -> float | None:
        """The one sparsity of a pattern that has no choice."""
        return None


def check_scores(scores: torch.Tensor) -> None:
    """Raise `UsageError` unless the scores are finite and >= 0."""
    if scores.numel() == 0:
        raise UsageError("no scores: the tensor is empty")
    if not bool(torch.isfinite(scores).all()):
        raise UsageError("scores hold NaN or infinity: is a weight or a statistic not finite?")
    if bool((scores < 0).any()):
        raise UsageError("scores must be >= 0 (high = keep)")


def removed_count(total: int, sparsity: float | None, pattern: str) -> int:
    """The number of ``total`` that go."""
    if sparsity is None or not 0 <= sparsity < 1:
        raise UsageError(f"pattern {pattern} needs a sparsity in [0, 1), got {sparsity!r}")
    return min(round(sparsity * total), total - 1)


def _edge(scores: torch.Tensor, removed: int) -> torch.Tensor:
    """The ``removed``-th lowest score of each row, (..., 1).

    NumPy's partition is several times faster than `kthvalue` on a CPU.
    """
    if scores.device.type != "cpu" or scores.dtype not in (torch.float32, torch.float64):
        return scores.kthvalue(removed, dim=-1, keepdim=True).values
    parted = np.partition(scores.detach().numpy(), removed - 1, axis=-1)
    return torch.from_numpy(parted[..., removed - 1 : removed].copy())


SELECT_FROM = 256
"""Scores in a row from which finding the edge is faster than sorting."""


def keep_highest(scores: torch.Tensor, removed: int) -> torch.Tensor:
    """Keep mask over the last dim that removes the ``removed`` lowest scores of each row, ties by index."""
    if removed <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if scores.shape[-1] < SELECT_FROM:
        order = torch.argsort(scores, dim=-1, descending=True, stable=True)
        keep = torch.ones_like(scores, dtype=torch.bool)
        return keep.scatter(-1, order[..., scores.shape[-1] - removed :], False)
    edge = _edge(scores, removed)
    below, equal = scores < edge, scores == edge
    missing = removed - below.sum(dim=-1, keepdim=True)
    if torch.equal(equal.sum(dim=-1, keepdim=True), missing):
        return ~(below | equal)
    behind = equal.flip(-1).cumsum(dim=-1).flip(-1)  # equal ones from here to the end: the last of them go
    return ~(below | (equal & (behind <= missing)))
