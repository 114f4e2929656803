"""The learning rate where nobody says one: short trials from the same weights.

The best rate differs by a factor of a hundred between a pretrained transformer and a small network that was trained in a
minute, and a pruned model needs another one than its dense original. A range test (Smith 2015, arXiv 1506.01186) raises the
rate within one run; here every rate has a short run of its own with the whole course of the schedule, because what counts is
what a rate reaches when it is lowered at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

FACTOR = 4.0
"""The factor between two rates that are tried."""
FARTHEST = 4
"""Steps of `FACTOR` from the first rate, each way."""
MARGIN = 0.05
"""A larger rate must bring the loss down by this share more: in a long run the smaller one catches up."""
MARGIN_RISING = 0.25
"""The margin where sparsity rises meanwhile.

The trial begins with a model that has lost everything, the training with a dense one, which a large rate ruins first.
(`benchmarks/recovery.py --workload wide_cnn --sparsities 0.75 --epochs 2 --methods gradual`: 0.757 with `--rate 0.004`, which a
margin of a twentieth chooses, 0.796 with `--rate 0.001`, which this one chooses; seed 0.)
"""

RUINED = 2.0
"""Smaller rates than the first are looked at if it makes the loss so many times larger.

A little disturbance is what any useful rate does in so few steps to a model that has lost little; by the end of the training it
is worth it.
"""


LITTLE = 0.25
"""A trial that brings the loss down by less than this share says little: what is tried may not have begun to learn."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best rate of a ladder.

    Attributes:
        share: of the untrained loss, by which it brings it down; negative where it raises it.
    """

    rate: float
    share: float

    @property
    def little(self) -> bool:
        return self.share < LITTLE


def best(loss_of: Callable[[float], float], first: float, margin: float = MARGIN) -> Found:
    """The rate that brings the loss down most, on a geometric ladder: up from ``first``, or down from one that ruins.

    What counts is what a rate brings beside none at all. A model that has lost everything gains little in a few steps, and yet
    it is clear which of two rates brings more.

    Args:
        loss_of: rate -> loss after a short run with it; infinite where it fails. It is asked for 0 too.
        margin: how much more a larger rate must bring, as a share.
    """
    untrained = loss_of(0.0)

    def gain(rate: float) -> float:
        loss = loss_of(rate)
        return untrained - loss if math.isfinite(loss) else -math.inf

    ruined = (1 - RUINED) * abs(untrained)
    best_rate, most = first, gain(first)
    if most <= ruined:
        for step in range(1, FARTHEST + 1):
            reached = gain(first / FACTOR**step)
            if most > ruined and reached <= most:
                break
            best_rate, most = first / FACTOR**step, reached
        return Found(best_rate, most / abs(untrained) if untrained else 0.0)
    for step in range(1, FARTHEST + 1):
        reached = gain(first * FACTOR**step)
        if reached <= most + margin * abs(most):
            break
        best_rate, most = first * FACTOR**step, reached
    return Found(best_rate, most / abs(untrained) if untrained else 0.0)
