"""What is believed of candidates after the trials so far: divergence, drop, latency ratio, other resources.

The sampler proposes by it. Whatever proposed a candidate, it decides about stopping early and about measuring a latency again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import optuna

from hwprune.searching.sampling.drop_model import POWER, SCATTERS, Curves, DropModel, improvement
from hwprune.searching.sampling.error_model import ErrorModel
from hwprune.searching.sampling.history import History, HistoryReader
from hwprune.searching.sampling.problem import AllocationProblem, Array, Limits
from hwprune.searching.sampling.ratio_model import RatioModel

SAMPLES = 32
"""Posterior samples over which the expected improvement is averaged."""
SCALE = 0.2
"""Divergence at which a drop of `Limits.reference_drop` is expected before anything is known; of classifiers five points are
lost at some 0.2 nats. Only the first proposals depend on it."""
UNKNOWN_ERROR = 0.02
"""Standard error of a drop as a share of the reference, where the study does not tell it."""
UNTOLD = 1000.0
"""Standard error, as a share of the reference, of a drop that was not scored: only the curve tells it."""
SMALL = 0.2
"""Share of the reference above which a drop counts by its logarithm rather than by its size: users ask for half a point
more often than for four, and by size alone all between 1.0x and a first point at 0.7 points is worth a twentieth of the area."""
GENTLER = 0.25
"""Share of the floor down to which proposals still tell drops apart: by the curve, where scores can't."""


def drop_model_for(limits: Limits, scatters: Mapping[float, float] = SCATTERS) -> DropModel:
    """What is believed of drops before anything was evaluated."""
    reference = limits.reference[0]
    return DropModel(SCALE * (reference / limits.reference_drop) ** (1 / POWER), reference, scatters)


class Expected(NamedTuple):
    """What is expected of allocations, an entry each.

    Attributes:
        gain: area that it adds to the front in (drop, log of the latency ratio), averaged over what is believed.
        beaten: probability that something that was evaluated is at least as good in both.
        ratio, ratio_sd: of the latency.
        log_divergence: mean of ln KL.
    """

    gain: Array
    beaten: Array
    ratio: Array
    ratio_sd: Array
    log_divergence: Array


class Posterior:
    """The models of divergence, ratio and drop, fitted to a study.

    Attributes:
        resource_factors: resource -> what trials really saved over what their choices say.
        fitted_for: number of the trial for which `refit` was called last.
    """

    def __init__(self, problem: AllocationProblem) -> None:
        self.problem = problem
        self._reader = HistoryReader(problem)
        self.divergence = ErrorModel(problem.errors, problem.gram, problem.kinds)
        self.ratio = RatioModel(problem.saved)
        self.drop = drop_model_for(problem.limits)
        self.resource_factors = dict.fromkeys(problem.saves, 1.0)
        self.fitted_for = -1

    def refit(self, study: optuna.Study, number: int) -> History:
        """Fit the three models to what is finished (trials other than ``number``)."""
        seen = self._reader.read(study, number)
        self.fitted_for = number
        count = len(self.problem.items)
        chosen = np.array(seen.chosen, dtype=int).reshape(len(seen.chosen), count)
        divergence = np.array(seen.divergence)
        drop, ratio = np.array(seen.drop), np.array(seen.ratio)
        self.divergence.fit(chosen, divergence, np.array(seen.weight))
        timed = np.isfinite(ratio)
        self.ratio.fit(chosen[timed], ratio[timed], self.problem.coupling(chosen[timed]), np.array(seen.ratio_sd)[timed])
        scored = np.isfinite(drop) & ~np.isinf(np.array(seen.drop_sd))
        self.drop.fit(divergence[scored], drop[scored], self._errors_of_drops(seen)[scored])
        # Two axes of one layer save less together than the sum of what each saves; files hold more than weights.
        for name in self.problem.saves:
            told, real = self.problem.claimed_savings(name, chosen), np.array([saved.get(name, np.nan) for saved in seen.saved])
            both = np.isfinite(real) & (told > 0)
            self.resource_factors[name] = float(np.median(real[both] / told[both])) if both.any() else 1.0
        return seen

    def predict(self, parameters: Mapping[str, Any]) -> dict[str, float] | None:
        """What is believed of a candidate: divergence, drop, ratio and its standard deviation. `refit` comes first."""
        chosen = self.problem.allocation(parameters)
        if chosen is None:
            return None
        one = chosen[None]
        logs = self.divergence.samples(one, np.random.default_rng(0), 2)[0]
        ratio, sd = self.ratio.predict(one, self.problem.coupling(one))
        divergence = float(np.exp(logs[0])) if chosen.any() else 0.0
        return {
            "divergence": divergence, "drop": float(self.drop(np.array([divergence]))[0]), "ratio": float(ratio[0]),
            "ratio_sd": float(sd[0]),
        }  # fmt: skip

    def errors(self, draw: np.random.Generator | None = None) -> list[Array]:
        """Errors of the options under the sensitivities that are believed (or drawn)."""
        factors = self.divergence.sensitivities(draw)
        return [errors * factor for errors, factor in zip(self.problem.errors, factors, strict=True)]

    def expected_gain(self, pool: Array, seen: History, draw: np.random.Generator) -> Expected:
        """What each allocation is expected to add to the front that will be delivered."""
        logs = self.divergence.samples(pool, draw, SAMPLES)
        ratio, sd = self.ratio.predict(pool, self.problem.coupling(pool), measured=False)
        ratios = np.maximum(ratio[None] + sd[None] * draw.standard_normal((SAMPLES, len(pool))), 0.01)
        curves = self.drop.draw(draw, SAMPLES)
        drops = self.worth(self.drop.sampled(np.exp(logs), curves, draw))
        known_drops, known_ratios = self._known(seen, curves, draw)
        known_drops = self.worth(known_drops)
        reference = float(self.worth(np.array(self.problem.limits.reference[0]))), self.problem.limits.reference[1]
        gain, beaten = np.zeros(len(pool)), np.zeros(len(pool))
        for row in range(SAMPLES):
            front = np.stack([known_drops[row], np.log(known_ratios)], axis=1)
            gain += improvement(drops[row], np.log(ratios[row]), front, (reference[0], math.log(reference[1])))
            better = (front[None, :, 0] <= drops[row][:, None]) & (front[None, :, 1] <= np.log(ratios[row])[:, None])
            beaten += better.any(axis=1)
        return Expected(gain / SAMPLES, beaten / SAMPLES, ratio, sd, logs[0])

    def worth(self, drops: Array) -> Array:
        """Drops on the scale on which the area of a front is measured.

        With a limit on the drop it is the drop itself: only what lies near the limit is asked for. Without one nobody knows which
        limit the user has, and the scale is finer for small drops.
        """
        if self.problem.limits.max_drop is not None:
            return np.maximum(drops, self.floor)
        unit = SMALL * self.problem.limits.reference[0]
        found: Array = np.log1p(np.maximum(drops, GENTLER * self.floor) / unit)
        return found

    @property
    def floor(self) -> float:
        """Drops below it count alike."""
        return self.drop.floor(self.problem.limits.max_drop)

    def front_members(self, seen: History) -> list[int]:
        """Places in the history of the trials that no other beats in (drop, ratio), worst drop last."""
        told = self.told_drops(seen)
        ratios = np.array(seen.ratio)
        order = sorted(np.flatnonzero(np.isfinite(told) & np.isfinite(ratios)).tolist(), key=lambda i: (told[i], ratios[i]))
        members, best = [], np.inf
        for i in order:
            if ratios[i] < best and told[i] < self.problem.limits.reference[0]:
                best = ratios[i]
                members.append(i)
        return members

    def told_drops(self, seen: History) -> Array:
        """(trials,): the drop of each finished trial by its divergence and its score together, saturated; NaN without a score."""
        divergence = np.array(seen.divergence)
        error = np.maximum(self._errors_of_drops(seen), 1e-12)
        drop = self.drop.corrected(np.array(seen.drop), error)
        expected = self.drop(divergence) if len(divergence) else divergence
        spread = np.maximum(self.drop.scatter * expected, 1e-12)
        found: Array = np.maximum((expected * error**2 + drop * spread**2) / (error**2 + spread**2), self.floor)
        return found

    def _errors_of_drops(self, seen: History) -> Array:
        error = np.array(seen.drop_sd)
        unknown = np.where(np.isinf(error), UNTOLD, UNKNOWN_ERROR) * self.problem.limits.reference[0]
        found: Array = np.where(np.isfinite(error), error, unknown)
        return found

    def _known(self, seen: History, curves: Curves, draw: np.random.Generator) -> tuple[Array, Array]:
        """(samples, candidates) of drops and (candidates,) of ratios: of what was evaluated, and of what is running."""
        drop, ratio_seen = np.array(seen.drop), np.array(seen.ratio)
        known = np.isfinite(drop) & np.isfinite(ratio_seen)
        for name, needed in self.problem.limits.min_saved.items():  # what takes too much is on no front
            known &= ~(np.array([saved.get(name, np.nan) for saved in seen.saved]) < needed)
        divergence = np.array(seen.divergence)[known]
        drops = self.drop.known(divergence, drop[known], self._errors_of_drops(seen)[known], curves, draw)
        rows = np.array(seen.chosen, dtype=int).reshape(len(seen.chosen), len(self.problem.items))[known]
        ratios = self.ratio.smooth(rows, self.problem.coupling(rows), ratio_seen[known], np.array(seen.ratio_sd)[known])
        if seen.running:
            rows = np.stack(seen.running)
            logs = self.divergence.samples(rows, draw, len(curves.log_k))
            ratio, _ = self.ratio.predict(rows, self.problem.coupling(rows))
            drops = np.concatenate([drops, self.drop.sampled(np.exp(logs), curves, draw)], axis=1)
            ratios = np.concatenate([ratios, ratio])
        return drops, np.maximum(ratios, 0.01)
