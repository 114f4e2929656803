"""What is believed of candidates after the trials so far: divergence, drop, latency ratio, other resources.

The sampler proposes by it. Whatever proposed a candidate, it decides about stopping early and about measuring a latency again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from hwprune.searching.sampling.drop_model import DropModel, improvement
from hwprune.searching.sampling.error_model import ErrorModel
from hwprune.searching.sampling.history import History, HistoryReader
from hwprune.searching.sampling.problem import AllocationProblem, Array
from hwprune.searching.sampling.ratio_model import RatioModel

SAMPLES = 24
"""Posterior samples over which the expected improvement is averaged."""


class Posterior:
    """The models of divergence, ratio and drop, fitted to a study.

    Attributes:
        resource_factors: resource -> what trials really saved over what their choices say.
        fitted_for: number of the trial for which `refit` was called last.
    """

    def __init__(self, problem: AllocationProblem) -> None:
        self.problem = problem
        self._reader = HistoryReader(problem)
        self.divergence = ErrorModel(problem.errors, problem.gram)
        self.ratio = RatioModel(problem.saved)
        # Of classifiers ten points are lost at some 0.4 nats; only the first proposals depend on it.
        self.drop = DropModel(1.5 * problem.limits.reference_drop, problem.limits.reference_drop)
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
        scored = np.isfinite(drop)
        self.drop.fit(divergence[scored], drop[scored])
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

    def expected_gain(self, pool: Array, seen: History, draw: np.random.Generator) -> tuple[Array, Array, Array, Array]:
        """Expected hypervolume gain of each allocation, with its predicted ratio, deviation and ln KL."""
        logs = self.divergence.samples(pool, draw, SAMPLES)
        ratio, sd = self.ratio.predict(pool, self.problem.coupling(pool), measured=False)
        ratios = ratio[None] + sd[None] * draw.standard_normal((SAMPLES, len(pool)))
        drops = self.drop(np.exp(logs))
        front = self.points(seen)
        gain = improvement(drops, np.maximum(ratios, 0.01), front, self.problem.limits.reference).mean(axis=0)
        return gain, ratio, sd, logs[0]

    def points(self, seen: History) -> Array:
        """(drop, ratio) of what was evaluated, drops smoothed; of what is running, as predicted."""
        drop, ratio_seen = np.array(seen.drop), np.array(seen.ratio)
        known = np.isfinite(drop) & np.isfinite(ratio_seen)
        for name, needed in self.problem.limits.min_saved.items():  # what takes too much is on no front
            known &= ~(np.array([saved.get(name, np.nan) for saved in seen.saved]) < needed)
        smooth = self.drop(np.array(seen.divergence)[known])
        rows = np.array(seen.chosen, dtype=int).reshape(len(seen.chosen), len(self.problem.items))[known]
        told = self.ratio.smooth(rows, self.problem.coupling(rows), ratio_seen[known], np.array(seen.ratio_sd)[known])
        points = list(zip(smooth.tolist(), told.tolist(), strict=True))
        if seen.running:
            rows = np.stack(seen.running)
            logs = self.divergence.samples(rows, np.random.default_rng(0), 2)[0]
            ratio, _ = self.ratio.predict(rows, self.problem.coupling(rows))
            points += list(zip(self.drop(np.exp(logs)).tolist(), ratio.tolist(), strict=True))
        return np.array(points, dtype=float).reshape(-1, 2)
