"""Blocks of R outputs by C inputs, for each kernel position on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.errors import UsageError
from hwprune.patterns.base import Pattern, check_scores, keep_highest, removed_count


@final
class Block(Pattern):
    """The blocks with the lowest sum of scores go."""

    def __init__(self, rows: int, columns: int) -> None:
        if rows < 1 or columns < 1 or rows * columns == 1:
            raise UsageError(f"pattern block:{rows}x{columns}: a block holds at least two weights")
        self.rows, self.columns = self.block = rows, columns
        self.name = f"block:{rows}x{columns}"
        self.description = f"blocks of {rows} outputs x {columns} inputs"

    def keep_mask(self, scores: torch.Tensor, sparsity: float | None = None) -> torch.Tensor:
        check_scores(scores)
        reason = self.inadmissible(scores.shape)
        if reason:
            raise UsageError(f"pattern {self.name}: {reason}")
        out, inner = scores.shape[:2]
        r, c = self.rows, self.columns
        blocks = scores.reshape(out // r, r, inner // c, c, -1)
        sums = blocks.sum(dim=(1, 3), dtype=torch.float64)
        removed = removed_count(sums.numel(), sparsity, self.name)
        keep = keep_highest(sums.reshape(-1), removed).reshape(sums.shape)
        return keep[:, None, :, None, :].expand(blocks.shape).reshape(scores.shape)

    def inadmissible(self, shape: Sequence[int]) -> str | None:
        if len(shape) < 2:
            return "it needs a weight with outputs and inputs"
        if shape[0] % self.rows or shape[1] % self.columns:
            return f"{shape[0]} outputs x {shape[1]} inputs don't divide into blocks of {self.rows} x {self.columns}"
        return None
