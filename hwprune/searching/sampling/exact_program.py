"""Exact allocation under several limits, as an integer program."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from hwprune.searching.sampling.allocation import Array

GAP = 1e-4
"""Gap to the optimum, relative to it, that is good enough."""
TIME_LIMIT = 2.0
"""Seconds of one allocation; what has been found by then is taken."""
MOST_ROUNDS = 6
"""Programs that follow each other with errors in the scale of the best allocation so far."""
TOLERANCE = 1e-6
"""Distance, relative to the largest use, by which the solver may exceed a limit."""


def solve_limits(errors: Sequence[Array], uses: Sequence[Sequence[Array]], limits: Sequence[float]) -> list[int] | None:
    """Least error under several limits at once, by an integer program (HiGHS).

    The solver works to absolute tolerances, and errors differ by many orders of magnitude. So each allocation that is found gives
    the scale of the next program, in which options that alone cost more than all of it are left out.

    Args:
        uses: resource -> item -> (options,).
        limits: of each resource. They are kept exactly; what keeps them by less than the solver's tolerance may be overlooked.

    Returns:
        an option for each item, or None if no choice meets all limits.
    """
    program = _Program(errors, uses, limits)
    best: list[int] | None = None
    scale = max(float(program.costs.max(initial=0.0)), 1e-300)
    for _ in range(MOST_ROUNDS):
        found = program.solve(scale)
        if found is None or (best is not None and program.cost(found) >= program.cost(best)):
            break
        best, before = found, scale
        scale = program.cost(best)
        if scale <= 0 or scale > (1 - GAP) * before:
            break
    return best


class _Program:
    """Options as columns, 0 or 1.

    Attributes:
        costs: errors above the least one of their item.
    """

    def __init__(self, errors: Sequence[Array], uses: Sequence[Sequence[Array]], limits: Sequence[float]) -> None:
        self.costs = np.concatenate([np.asarray(error, dtype=float) - error.min() for error in errors])
        ends = np.cumsum([len(error) for error in errors])
        self._starts = np.concatenate([[0], ends[:-1]])
        columns = np.arange(len(self.costs))
        self._one_each = ((columns >= self._starts[:, None]) & (columns < ends[:, None])).astype(float)
        self._uses = np.array([np.concatenate(list(use)) for use in uses], dtype=float)
        self._limits = np.asarray(limits, dtype=float)
        self._largest = np.maximum(np.abs(self._uses).max(axis=1, initial=0.0), 1e-300)
        self._end = time.monotonic() + TIME_LIMIT

    def cost(self, chosen: Sequence[int]) -> float:
        """An allocation's error above the least one."""
        return float(sum(self.costs[self._starts + chosen].tolist()))

    def solve(self, scale: float) -> list[int] | None:
        """The cheapest allocation in which no option costs more than ``scale``; None if there is none, or no time is left."""
        margins, step = np.zeros(len(self._limits)), TOLERANCE
        while (left := self._end - time.monotonic()) > 0:
            chosen = self._run(scale, margins, left)
            if chosen is None:
                return None
            excess = self._excess(chosen)
            if not (excess > 0).any():
                return chosen
            # Nothing below the solver's tolerance has an effect; the first margin that does may leave out what just fits.
            margins += np.where(excess > 0, np.maximum(excess, 0) / self._largest + step, 0.0)
            step *= 2
        return None

    def _excess(self, chosen: Sequence[int]) -> Array:
        """By how much an allocation exceeds each limit, added up item by item as the caller does."""
        used = np.array([sum(row) for row in self._uses[:, self._starts + chosen].tolist()])
        found: Array = used - self._limits
        return found

    def _run(self, scale: float, margins: Array, seconds: float) -> list[int] | None:
        from scipy.optimize import Bounds, LinearConstraint, milp

        constraints = [
            LinearConstraint(self._one_each, 1, 1),
            LinearConstraint(self._uses / self._largest[:, None], -np.inf, self._limits / self._largest - margins),
        ]
        found = milp(
            np.minimum(self.costs / scale, 1.0),
            constraints=constraints,
            integrality=np.ones(len(self.costs)),
            bounds=Bounds(0, (self.costs <= scale).astype(float)),
            options={"time_limit": seconds, "mip_rel_gap": GAP},
        )
        if found.x is None:
            return None
        parts = np.split(found.x, self._starts[1:])
        return [int(np.argmax(part)) for part in parts]
