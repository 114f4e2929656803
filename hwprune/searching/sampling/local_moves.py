"""Moves around the front: members with a few choices changed, and how often proposals of each kind succeeded."""

from __future__ import annotations

import bisect

import numpy as np

from hwprune.searching.sampling.history import History
from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.problem import Array

MOVES = 96
"""Changes of front members that are looked at for each proposal."""
RADIUS = 3
"""Largest number of pairs of items that one move changes."""
PRIOR_SUCCESSES, PRIOR_TRIES = 2.0, 3.0
"""Proposals that each kind is credited with before it has made any."""
PATIENCE, REWARD = 5, 2
"""Moves without success after which the radius halves, and successes after which it grows."""


class LocalMoves:
    """Allocations near the front of what was evaluated."""

    def __init__(self, posterior: Posterior) -> None:
        self.posterior, self.problem = posterior, posterior.problem

    def around_front(self, seen: History, draw: np.random.Generator) -> list[tuple[int, str, list[int]]]:
        """Front members with up to `RADIUS` pairs of items changed: one takes a slower option, another a faster one."""
        members = self.posterior.front_members(seen)
        if not members:
            return []
        radius = self._radius(seen)
        found = []
        for step in range(MOVES):
            origin = members[step % len(members)]
            chosen = seen.chosen[origin].tolist()
            for _ in range(int(draw.integers(1, radius + 1))):
                u, v = draw.choice(len(self.problem.items), 2, replace=len(self.problem.items) < 2)
                for item, faster in ((int(u), True), (int(v), False)):
                    options = self.problem.useful[item]  # fastest first
                    at = options.index(chosen[item]) if chosen[item] in options else len(options) - 1
                    to = at - 1 if faster else at + 1
                    if 0 <= to < len(options) and (faster or draw.random() < 0.7):
                        chosen[item] = options[to]
            found.append((origin, "move", chosen))
        return found

    def _radius(self, seen: History) -> int:
        """Shrinks while moves fail, grows while they succeed (a trust region)."""
        front = set(self.posterior.front_members(seen))
        radius, failures, successes = float(RADIUS), 0, 0
        for i, kind in enumerate(seen.kind):
            if kind != "move":
                continue
            if i in front:
                successes, failures = successes + 1, 0
            else:
                successes, failures = 0, failures + 1
            if failures >= PATIENCE:
                radius, failures = max(1.0, radius / 2), 0
            if successes >= REWARD:
                radius, successes = min(2.0 * RADIUS, radius * 1.5), 0
        return max(1, round(radius))


def success_rates(seen: History, drops: Array) -> dict[str, float]:
    """How often each kind of proposal came to lie on the front of what was evaluated before it.

    The largest of many expected gains is an overestimate, the more so the rougher the beliefs it comes from. Where plain
    optima keep what they promise and draws or moves do not, this says so, and the other way round. The front is the one
    that will be delivered: a candidate that is closer to dense where nobody can tell the difference has won nothing.

    Args:
        drops: of the trials, as `Posterior.told_drops` tells them.
    """
    wins: dict[str, float] = {}
    tries: dict[str, float] = {}
    ratios: list[float] = []  # the front so far, by rising ratio and so by falling drop
    front_drops: list[float] = []
    for kind, ratio, drop in zip(seen.kind, seen.ratio, drops.tolist(), strict=True):
        if not (np.isfinite(ratio) and np.isfinite(drop)):
            continue
        at = bisect.bisect_right(ratios, ratio)
        beaten = at > 0 and front_drops[at - 1] <= drop
        if not beaten:
            end = at
            while end < len(front_drops) and front_drops[end] >= drop:
                end += 1
            ratios[at:end], front_drops[at:end] = [ratio], [drop]
        if kind:
            tries[kind] = tries.get(kind, 0.0) + 1
            wins[kind] = wins.get(kind, 0.0) + (not beaten)
    return {kind: (wins[kind] + PRIOR_SUCCESSES) / (count + PRIOR_TRIES) for kind, count in tries.items()}
