"""Schedules: the share that is removed at each moment of a training run; pure functions.

A schedule maps progress in [0, 1] to a sparsity between ``initial`` and ``final``, never falling, with ``final`` at 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from hwprune.errors import UnknownNameError, UsageError

Schedule = Callable[[float, float, float], float]
"""(progress, initial, final) -> sparsity."""

ITERATIONS = 10
"""Rounds of `iterative` where nobody says how many."""


def one_shot(progress: float, initial: float, final: float) -> float:  # noqa: ARG001 - all have the same arguments
    """Remove all at once, at the beginning."""
    return final


def linear(progress: float, initial: float, final: float) -> float:
    """Remove an equal amount in every step."""
    return initial + (final - initial) * _inside(progress)


def cubic(progress: float, initial: float, final: float) -> float:
    """s_f + (s_i - s_f) (1 - progress)^3: fast while there is plenty, slow at the end (Zhu & Gupta 2017, arXiv 1710.01878)."""
    return final + (initial - final) * (1 - _inside(progress)) ** 3


def exponential(progress: float, initial: float, final: float) -> float:
    """What is left falls by the same factor in every step.

    HALP (Shen et al. 2022, arXiv 2110.10811) lowers its latency budget so; sparsity here is the share of the latency that is
    gone. Needs ``final`` < 1.
    """
    if final >= 1:
        raise UsageError("an exponential schedule never removes everything: the final sparsity must be < 1")
    if _inside(progress) in (0.0, 1.0):  # exactly, whatever logarithms round
        return final if _inside(progress) else initial
    left = (1 - _inside(progress)) * math.log1p(-initial) + _inside(progress) * math.log1p(-final)
    return -math.expm1(left)


def iterative(progress: float, initial: float, final: float, rounds: int = ITERATIONS) -> float:
    """Remove the same share of what is left in each round, and train in between (Han et al. 2015; Frankle & Carbin 2019).

    The first round is at progress 0, the last one begins at (rounds - 1) / rounds, so that training follows it too.
    """
    done = min(rounds, int(_inside(progress) * rounds + 1e-9) + 1)
    return exponential(done / rounds, initial, final)


SCHEDULES: dict[str, Schedule] = {
    "cubic": cubic,
    "exponential": exponential,
    "iterative": iterative,
    "linear": linear,
    "one-shot": one_shot,
}


def get(name: str) -> Schedule:
    """The schedule of that name; ``iterative:N`` has N rounds. Raises `UsageError`."""
    kind, _, rounds = name.partition(":")
    if kind not in SCHEDULES:
        raise UnknownNameError("schedule", name, SCHEDULES)
    if not rounds:
        return SCHEDULES[kind]
    if kind != "iterative" or not rounds.isdigit() or int(rounds) < 1:
        raise UsageError(f"schedule {name!r}: only iterative takes a number of rounds, at least 1")
    return partial(iterative, rounds=int(rounds))


def _inside(progress: float) -> float:
    return min(1.0, max(0.0, progress))
