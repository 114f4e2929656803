"""Exact allocation under several limits, as an integer program."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprune.searching.sampling.allocation import Array

LIMITS = {"time_limit": 2.0, "mip_rel_gap": 1e-4}
"""Limits of one integer program: seconds, and the gap to the optimum; what it has found by then is taken."""


def solve_limits(errors: Sequence[Array], uses: Sequence[Sequence[Array]], limits: Sequence[float]) -> list[int] | None:
    """Least error under several limits at once, by an integer program (HiGHS).

    Args:
        uses: resource -> item -> (options,).
        limits: of each resource.

    Returns:
        an option for each item, or None if no choice meets all limits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    sizes = [len(e) for e in errors]
    total = sum(sizes)
    once = np.zeros((len(sizes), total))
    start = 0
    for row, size in enumerate(sizes):
        once[row, start : start + size] = 1
        start += size
    rows = np.array([np.concatenate(list(use)) for use in uses], dtype=float)
    scale = np.maximum(np.abs(rows).max(axis=1, initial=0.0), 1e-300)
    constraints = [
        LinearConstraint(once, 1, 1),
        LinearConstraint(rows / scale[:, None], -np.inf, np.asarray(limits, dtype=float) / scale),
    ]
    cost = np.concatenate(list(errors))
    scaled = cost / max(float(np.abs(cost).max(initial=0.0)), 1e-300)
    found = milp(scaled, constraints=constraints, integrality=np.ones(total), bounds=Bounds(0, 1), options=LIMITS)
    if found.x is None:
        return None
    chosen, start = [], 0
    for size in sizes:
        chosen.append(int(np.argmax(found.x[start : start + size])))
        start += size
    return chosen
