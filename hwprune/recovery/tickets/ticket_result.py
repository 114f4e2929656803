"""The result of a lottery ticket experiment, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch

from hwprune.recovery.tickets.course import Row


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean over seeds with its 95 % interval (Student's t)."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return cls(fmean(values), fmean(values) - half, fmean(values) + half)


@dataclass(frozen=True, slots=True)
class TicketRound:
    """Tickets of one sparsity: the metric of each seed, and their paired difference (winning minus random)."""

    sparsity: float
    winning: tuple[float, ...]
    random: tuple[float, ...]

    @property
    def gain(self) -> Interval:
        return Interval.of([a - b for a, b in zip(self.winning, self.random, strict=True)])

    @property
    def apart(self) -> bool:
        """Do the intervals of winning and random tickets not overlap?"""
        a, b = Interval.of(self.winning), Interval.of(self.random)
        return a.low > b.high or b.low > a.high

    def to_json(self) -> dict[str, Any]:
        a, b, gain = Interval.of(self.winning), Interval.of(self.random), self.gain
        return {
            "sparsity": self.sparsity, "winning": a.mean, "winning_ci_low": a.low, "winning_ci_high": a.high, "random": b.mean,
            "random_ci_low": b.low, "random_ci_high": b.high, "gain": gain.mean, "gain_ci_low": gain.low,
            "gain_ci_high": gain.high, "apart": self.apart,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Tickets:
    """The result of a lottery ticket experiment.

    Attributes:
        dense: the metric of each seed with all weights, trained the same way.
        points: by sparsity.
        transferred: on the second workload, where there was one.
        masks: of the first seed's last round: parameter -> keep mask.
        split, transfer_split: that the metrics are from.
        higher_is_better, transfer_higher_is_better: of the metrics.
    """

    dense: tuple[float, ...]
    points: tuple[TicketRound, ...]
    transferred: tuple[TicketRound, ...]
    masks: Mapping[str, torch.Tensor]
    split: str
    transfer_split: str = ""
    higher_is_better: bool = True
    transfer_higher_is_better: bool = True


def points_of(rows: Sequence[Sequence[Row]]) -> tuple[TicketRound, ...]:
    """Rounds of all seeds side by side; sparsities of one round differ between seeds by single weights."""
    return tuple(
        TicketRound(fmean(row[0] for row in round_rows), tuple(row[1] for row in round_rows), tuple(row[2] for row in round_rows))
        for round_rows in zip(*rows, strict=True)
    )
