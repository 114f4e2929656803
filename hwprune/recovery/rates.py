"""Which learning rate, where nobody says one: short trials from the same weights.

The best rate differs by a factor of a hundred between a pretrained transformer and a small network that was trained in a
minute, and a pruned model needs another one than its dense original. A range test (Smith 2015, arXiv 1506.01186) raises the
rate within one run; here every rate has a short run of its own with the whole course of the schedule, because what counts is
what a rate reaches when it is lowered at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

FACTOR = 4.0
"""Between two rates that are tried."""
FARTHEST = 4
"""Steps of `FACTOR` from the first rate, each way."""
MARGIN = 0.01
"""A larger rate must be better by this share of the loss: in a long run the smaller one catches up."""


def best(loss_of: Callable[[float], float], first: float) -> float:
    """The rate of least loss on a geometric ladder: upwards from ``first`` as long as that helps, else downwards.

    Args:
        loss_of: rate -> loss after a short run with it; infinite where it fails.
    """
    found, least = first, loss_of(first)
    for factor in (FACTOR, 1 / FACTOR):
        for step in range(1, FARTHEST + 1):
            rate = first * factor**step
            loss = loss_of(rate)
            wins = loss < least - MARGIN * abs(least) if factor > 1 else loss <= least
            if not (wins and math.isfinite(loss)):
                break
            found, least = rate, loss
        if found != first:
            break
    return found
