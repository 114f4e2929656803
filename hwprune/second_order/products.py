"""Products of a matrix with itself, of which only half is computed."""

from __future__ import annotations

import torch

SMALLEST = 384
"""Columns below which a block is no longer divided: on a machine that others use, smaller products cost more than they save."""


def gram(x: torch.Tensor) -> torch.Tensor:
    """``x^T x`` of (..., rows, d), (..., d, d): the blocks above the diagonal, of diagonal blocks the same again, and mirrored.

    Matrix products know nothing of the symmetry; from 768 columns on this takes less time (`benchmarks/second_order.py`).
    """
    d = x.shape[-1]
    if d < 2 * SMALLEST:
        return x.mT @ x
    result = x.new_empty(*x.shape[:-2], d, d)
    _fill(result, x)
    return result


def _fill(result: torch.Tensor, x: torch.Tensor) -> None:
    d = x.shape[-1]
    if d < 2 * SMALLEST:
        result.copy_(x.mT @ x)
        return
    half = d // 2 // 64 * 64  # aligned rows
    left, right = x[..., :half], x[..., half:]
    _fill(result[..., :half, :half], left)
    _fill(result[..., half:, half:], right)
    result[..., :half, half:] = left.mT @ right
    result[..., half:, :half] = result[..., :half, half:].mT
