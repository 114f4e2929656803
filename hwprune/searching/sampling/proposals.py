"""Kinds of proposals, and how often each came to the front."""

from __future__ import annotations

SWEEP = 6
"""First proposals where errors have no responses, and so no common scale: optima at budgets that bisect the times of interest."""
DRAWS = 4
"""Thompson samples of the sensitivities whose optima are candidates beside the posterior mean's."""
BUDGETS = 64
"""Budgets between the fastest and the dense model."""
MOVES = 96
"""Changes of front members that are looked at for each proposal."""
RADIUS = 3
"""Largest number of pairs of items that one move changes."""
PRIOR_SUCCESSES, PRIOR_TRIES = 2.0, 3.0
"""Proposals that each kind is credited with before it has made any."""
PATIENCE, REWARD = 5, 2
"""Moves without success after which the radius halves, and successes after which it grows."""
