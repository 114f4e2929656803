"""What a compensation is."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable

import torch
from torch import fx

Batches = Callable[[], Iterable[tuple[torch.Tensor, ...]]]
"""Gives the calibration inputs anew at each call."""


class Compensation(abc.ABC):
    """Changes what was kept so that the model's outputs change least. No training, no labels."""

    name: str
    description: str

    @abc.abstractmethod
    def applies(self, module: fx.GraphModule) -> bool:
        """Is there anything in the model that it would change?"""

    @abc.abstractmethod
    def apply(self, module: fx.GraphModule, batches: Batches) -> None:
        """Repair ``module`` in place. Raises `CandidateFailure` if the result is not finite."""
