"""The interface of a compensation."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from hwprune.structure.model_graph import Matrix

Batches = Callable[[], Iterable[tuple[torch.Tensor, ...]]]
"""Gives the calibration inputs anew at each call."""


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """The origin of a candidate: the dense model, the calibration data, and what was removed.

    Attributes:
        dense: the dense model's graph; the candidate's nodes have the same names.
        batches: calibration inputs.
        matrices: of the dense model.
        positions: tensor -> for each dim the positions of the dense tensor that it still has, in order; of those that changed.
        masks: parameter -> keep mask in the candidate's shape.
        relevance: batch -> node -> positions that matter to the outputs, for models in which others may not (padding tokens).
        cache: what was found out about the dense model, kept from candidate to candidate.
    """

    dense: fx.GraphModule
    batches: Batches
    matrices: Sequence[Matrix] = ()
    positions: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)
    relevance: Callable[[tuple[torch.Tensor, ...]], Mapping[str, torch.Tensor]] | None = None


class Compensation(abc.ABC):
    """Changes what was kept so that the model's outputs change least. No training, no labels."""

    name: str
    description: str
    local = False
    """Is it part of the units' options (see `hwprune.methods.layerwise`), and not a step on the whole model?"""
    needs: tuple[str, ...] = ()
    """Fields of `LayerStatistics` that it reads."""

    @abc.abstractmethod
    def applies(self, module: fx.GraphModule) -> bool:
        """Is there anything in the model that it would change?"""

    @abc.abstractmethod
    def apply(self, module: fx.GraphModule, context: Context) -> None:
        """Repair ``module`` in place. Raises `CandidateFailure` if the result is not finite."""
