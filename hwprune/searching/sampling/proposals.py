"""Proposals: optima of the knapsack under several beliefs and moves around the front, chosen by expected hypervolume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import optuna

from hwprune.searching.sampling.allocation import Allocation
from hwprune.searching.sampling.error_model import TRUSTED
from hwprune.searching.sampling.exact_program import solve_limits
from hwprune.searching.sampling.history import History
from hwprune.searching.sampling.local_moves import PRIOR_SUCCESSES, PRIOR_TRIES, LocalMoves, success_rates
from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.problem import Array

SWEEP = 6
"""First proposals where errors have no responses, and so no common scale: optima at budgets that bisect the times of interest."""
DRAWS = 4
"""Thompson samples of the sensitivities whose optima are candidates beside the posterior mean's."""
MOST_BEATEN = 0.95
"""Probability of being dominated in what is delivered, from which an allocation is not proposed."""
LEAST_SHARE = 1e-4
"""Expected gain, as a share of the area that could be gained, below which a search has converged."""
BUDGETS = 64
"""Budgets between the fastest and the dense model."""


class Proposer:
    """Makes the next allocation from what is believed.

    Args:
        seed: draws follow from it and from how many proposals came before.
        explore: False: only the sweep of optima under the prior, as often as there are trials (the plain knapsack).
        trials: how many trials are planned; only the plain sweep needs to know.
    """

    def __init__(self, posterior: Posterior, seed: int, *, explore: bool, trials: int) -> None:
        self.posterior, self.problem = posterior, posterior.problem
        self.seed, self.explore, self.trials = seed, explore, trials
        self._moves = LocalMoves(posterior)

    def propose(self, study: optuna.Study, number: int) -> tuple[list[int], dict[str, Any]]:
        """The next allocation, and why."""
        seen = self.posterior.refit(study, number)
        draw = np.random.default_rng([self.seed, seen.position])
        if not self.explore:
            return self._plain(seen, draw)
        done = len(seen.chosen)
        if self.problem.gram is None and done < SWEEP and (first := self._sweep(seen, done)) is not None:
            return first
        choice = self._best(seen, draw, DRAWS)
        if choice is not None and choice[1]["share"] < LEAST_SHARE:
            # What is believed finds nothing more: other beliefs may.
            choice = max(choice, self._best(seen, draw, 4 * DRAWS) or choice, key=lambda found: found[1]["gain"])
            choice[1]["converged"] = choice[1]["share"] < LEAST_SHARE
        return choice or self._anything(seen, draw)

    def _best(self, seen: History, draw: np.random.Generator, draws: int) -> tuple[list[int], dict[str, Any]] | None:
        """The allocation of the largest expected gain, and why; None: there is nothing new.

        ``share`` in the reasons: of the whole area that could be gained.
        """
        pool, kinds = self._pool(seen, draw, draws)
        if not len(pool):
            return None
        expected = self.posterior.expected_gain(pool, seen, draw)
        trust = success_rates(seen, self.posterior.told_drops(seen))
        gain = expected.gain * np.array([trust.get(kind, PRIOR_SUCCESSES / PRIOR_TRIES) for kind in kinds])
        gain = np.where(expected.beaten > MOST_BEATEN, 0.0, gain)
        best = int(np.argmax(gain))
        if gain[best] <= 0:  # nothing can be expected to be of use: what misses the limits least, and is beaten least
            excess = self._excess(self.posterior.drop(np.exp(expected.log_divergence)), expected.ratio)
            best = int(np.lexsort((expected.beaten, excess))[0])
        low, high = self._range()
        widest = float(self.posterior.worth(np.array(self.problem.limits.reference[0])))
        area = widest * max(math.log(high / low), 1e-9)
        return pool[best].tolist(), {
            "kind": kinds[best], "gain": float(gain[best]), "share": float(gain[best]) / area,
            "ratio": float(expected.ratio[best]),
            "ratio_sd": float(expected.ratio_sd[best]), "divergence": float(np.exp(expected.log_divergence[best])),
            "beaten": float(expected.beaten[best]),
        }  # fmt: skip

    def _excess(self, drops: Array, ratios: Array) -> Array:
        """How far allocations are outside of what counts, relative to it."""
        drop, ratio = self.problem.limits.reference
        found: Array = np.maximum(drops - drop, 0) / drop + np.maximum(ratios - ratio, 0) / ratio
        return found

    def _optima(self, errors: Sequence[Array], budgets: Array, saved: Sequence[Array] | None = None) -> list[list[int]]:
        """Optimal allocations for budgets (shares of dense); those that fit, each once.

        Args:
            saved: savings; default: as corrected by what was measured.
        """
        corrected = self.posterior.ratio.corrected() if saved is None else saved
        times = [-saved[useful] for saved, useful in zip(corrected, self.problem.useful, strict=True)]
        costs = [error[useful] for error, useful in zip(errors, self.problem.useful, strict=True)]
        pairs = {
            (u, v): -table[np.ix_(self.problem.useful[u], self.problem.useful[v])]
            for (u, v), table in self.problem.couplings.items()
        }
        found: list[list[int] | None]
        if not self.problem.saves:
            found = Allocation(times, costs, pairs).solve(budgets - 1)
        else:
            others = [
                [
                    -self.posterior.resource_factors[name] * saves[useful]
                    for saves, useful in zip(rows, self.problem.useful, strict=True)
                ]
                for name, rows in self.problem.saves.items()
            ]
            limits = [-needed for needed in self.problem.limits.min_saved.values()]
            found = [
                solve_limits(costs, [times, *others], [budget - 1, *limits]) for budget in budgets[:: max(1, len(budgets) // 6)]
            ]
        unique: dict[tuple[int, ...], None] = {}
        for chosen in found:
            if chosen is not None:
                unique[tuple(useful[o] for useful, o in zip(self.problem.useful, chosen, strict=True))] = None
        return [list(one) for one in unique]

    def _range(self, saved: Sequence[Array] | None = None) -> tuple[float, float]:
        """Ratios that can be reached."""
        corrected = self.posterior.ratio.corrected() if saved is None else saved
        low = (
            1
            - sum(float(saved.max()) for saved in corrected)
            - sum(max(0.0, float(t.max())) for t in self.problem.couplings.values())
        )
        return max(low, 0.02), self.problem.limits.reference[1]

    def _sweep(self, seen: History, done: int) -> tuple[list[int], dict[str, Any]] | None:
        """Until the scale of the divergence is known: bisect the ratios for the drop that is still of interest."""
        low, high = self._range()
        wanted = self.problem.limits.reference[0]
        ratios = [r for r in seen.ratio if np.isfinite(r)]
        bad = [r for r, d in zip(seen.ratio, seen.drop, strict=True) if np.isfinite(r) and d >= wanted]
        good = [r for r, d in zip(seen.ratio, seen.drop, strict=True) if np.isfinite(r) and d < wanted]
        floor = max(bad, default=low)
        if done == 0:
            target = 0.45 * low + 0.55 * high
        elif not good:
            target = (floor + high) / 2
        else:  # the widest gap between what is too bad and dense
            edges = sorted([floor, *[r for r in ratios if r > floor], high])
            gaps = [(b - a, (a + b) / 2) for a, b in pairwise(edges)]
            target = max(gaps)[1]
        for allocation in self._optima(self.posterior.errors(), np.linspace(target, high, 12)):
            if np.array(allocation).tobytes() not in seen.keys and any(allocation):
                return allocation, {"kind": "sweep", "ratio": target}
        return None

    def _plain(self, seen: History, draw: np.random.Generator) -> tuple[list[int], dict[str, Any]]:
        """Evenly spaced budgets, the prior's optima, nothing learned."""
        low, high = self._range(self.problem.saved)
        budgets = np.linspace(high, low, self.trials + 2)[1:-1]
        place = seen.position % len(budgets)
        order = np.argsort(np.abs(np.arange(len(budgets)) - place))
        for at in order:
            for allocation in self._optima(self.problem.errors, budgets[at : at + 1], self.problem.saved):
                if any(allocation) and np.array(allocation).tobytes() not in seen.keys:
                    return allocation, {"kind": "plain", "ratio": float(budgets[at])}
        return self._anything(seen, draw)

    def _pool(self, seen: History, draw: np.random.Generator, draws: int) -> tuple[Array, list[str]]:
        """Allocations that were not proposed yet: optima under several beliefs, and moves around the front."""
        low, high = self._range()
        budgets = np.linspace(low, high, BUDGETS)
        pool: dict[bytes, tuple[Array, str]] = {}

        def add(allocation: Sequence[int], kind: str) -> None:
            one = np.array(allocation, dtype=int)
            key = one.tobytes()
            if key not in seen.keys and one.any():
                pool.setdefault(key, (one, kind))

        for allocation in self._optima(self.posterior.errors(), budgets):
            add(allocation, "mean")
        for allocation in self._optima(self.problem.errors, budgets):
            add(allocation, "prior")
        drawn = draws if self.posterior.divergence.correlation < TRUSTED else max(1, draws // 2)
        if self.problem.saves:
            drawn = 0  # an integer program for each budget takes its time; moves around the front look further
        for _ in range(drawn):
            for allocation in self._optima(self.posterior.errors(draw), budgets):
                add(allocation, "thompson")
        for origin, kind, allocation in self._moves.around_front(seen, draw):
            del origin
            add(allocation, kind)
        if not pool:
            return np.zeros((0, len(self.problem.items)), dtype=int), []
        rows = np.stack([one for one, _ in pool.values()])
        kinds = [kind for _, kind in pool.values()]
        for name, needed in self.problem.limits.min_saved.items():
            fits = self.posterior.resource_factors[name] * self.problem.claimed_savings(name, rows) >= needed
            rows, kinds = rows[fits], [kind for kind, fit in zip(kinds, fits, strict=True) if fit]
        return rows, kinds

    def _anything(self, seen: History, draw: np.random.Generator) -> tuple[list[int], dict[str, Any]]:
        """Something that was not proposed yet, near the front if possible; the space may be exhausted."""
        chosen = [0] * len(self.problem.items)
        for attempt in range(400):
            start = seen.chosen[int(draw.integers(len(seen.chosen)))].tolist() if seen.chosen and attempt < 200 else None
            chosen = start or [int(draw.integers(len(item.choices))) for item in self.problem.items]
            item = int(draw.integers(len(self.problem.items)))
            chosen[item] = int(draw.integers(len(self.problem.items[item].choices)))
            if np.array(chosen, dtype=int).tobytes() not in seen.keys and any(chosen):
                break
        return chosen, {"kind": "anything"}
