"""N:M: of every M consecutive weights along the reduction, N stay.

Groups run along dim 1: the input channels of a convolution (for each kernel position on its own) and the input
features of a linear layer. That is how sparse tensor cores read them (methods: TensorRT groups convolution
weights KCRS along C and matrix products along K), unlike consecutive columns of ``weight.flatten(1)``, which
are kernel positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from hwprune.errors import UsageError
from hwprune.patterns.base import Pattern, check_scores, keep_highest


@final
class NOfM(Pattern):
    """Keep the N highest of each group of M.

    ``N:M:permuted`` first reorders the input channels (`permutation`), which changes nothing of what the model computes: the
    axis engine carries the order to whatever makes and reads the axis.
    """

    scope = "group"

    def __init__(self, n: int, m: int, *, permutes: bool = False) -> None:
        if not 1 <= n < m:
            raise UsageError(f"pattern {n}:{m}: N:M keeps N of M weights, so 1 <= N < M must hold")
        self.n, self.m = self.group = n, m
        self.permutes = permutes
        self.name = f"{n}:{m}" + (":permuted" if permutes else "")
        self.description = f"{n} of {m} consecutive weights along the reduction stay" + (
            ", inputs reordered so that more is kept" if permutes else ""
        )

    @property
    def fixed_sparsity(self) -> float | None:
        return 1 - self.n / self.m

    def keep_mask(self, scores: torch.Tensor, sparsity: float | None = None) -> torch.Tensor:
        check_scores(scores)
        if sparsity is not None and abs(sparsity - (1 - self.n / self.m)) > 1e-9:
            raise UsageError(f"pattern {self.name} removes {1 - self.n / self.m:g} of the weights, not {sparsity:g}")
        reason = self.inadmissible(scores.shape)
        if reason:
            raise UsageError(f"pattern {self.name}: {reason}")
        reduction = 1 if scores.ndim > 1 else 0
        last = scores.movedim(reduction, -1)
        groups = last.reshape(*last.shape[:-1], -1, self.m)
        keep = keep_highest(groups, self.m - self.n).reshape(last.shape)
        return keep.movedim(-1, reduction).contiguous()

    def inadmissible(self, shape: Sequence[int]) -> str | None:
        reduction = shape[1] if len(shape) > 1 else shape[0]
        if reduction % self.m:
            return f"the reduction has {reduction} inputs, which is not a multiple of {self.m}"
        return None
