"""What validation says of each trial's true drop, all trials taken together.

A candidate that is chosen because it scored well was lucky more often than not. So nothing is chosen by its score alone: the
curve from divergence to drop, fitted to all trials, is the prior of each, and its own score corrects it. Selection by such a
posterior needs no correction for having looked at many (Senn 2008, "A note concerning a selection paradox of Dawid's").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from hwprune.records.trial import Trial
from hwprune.searching.sampling.drop_model import SCATTERS, DropModel
from hwprune.searching.sampling.posterior import UNTOLD, drop_model_for
from hwprune.searching.sampling.problem import Limits

SURE = 0.9
"""Probability with which a limit on the drop must be met."""
DRAWS = 512
CAUTIOUS = {max(SCATTERS): 1.0}
"""Scatter of drops about the curve. The search may learn a smaller one; what a user is told must not rest on a curve's shape."""


class DropBelief:
    """Posterior of the true drops of searched trials.

    Args:
        trials: as they were searched.
        limits: of the search; its reference is the worst drop that matters.
        trained: trial -> (drop after a training, standard error): what is believed is then the drop after such a training, of the
            other trials by the curve alone. None: the drop without any.
    """

    def __init__(
        self, trials: Sequence[Trial], limits: Limits, trained: Mapping[int, tuple[float, float | None]] | None = None
    ) -> None:
        self.limits = limits
        self._model: DropModel = drop_model_for(limits, CAUTIOUS)
        worst = limits.reference[0]
        known = [t for t in trials if t.measured and t.searched and t.divergence is not None]
        evidence = {t.number: t.evidence if trained is None else trained.get(t.number, (0.0, math.inf)) for t in known}
        drops = np.array([evidence[t.number][0] for t in known], dtype=float)
        errors = np.array([_error(evidence[t.number][1], worst) for t in known], dtype=float)
        divergences = np.array([_divergence(t) for t in known])
        told = np.isfinite(errors)
        self._model.fit(divergences[told], drops[told], errors[told])
        self._samples: dict[int, np.ndarray[Any, Any]] = {}
        self._scored = {t.number: t.drop or 0.0 for t in known}
        if known:
            generator = np.random.default_rng(0)
            curves = self._model.draw(generator, DRAWS)
            rows = self._model.known(divergences, drops, np.where(told, errors, UNTOLD * worst), curves, generator)
            self._samples = {t.number: rows[:, place] for place, t in enumerate(known)}

    @property
    def floor(self) -> float:
        """Drops below it can't be told apart."""
        return self._model.floor(self.limits.max_drop)

    def drop(self, trial: Trial) -> float:
        """The mean of what is believed of a trial's drop; of a trained one, whose divergence means something else, its score."""
        samples = self._of(trial)
        return max(trial.evidence[0], 0.0) if samples is None else float(samples.mean())

    def high(self, trial: Trial) -> float:
        """The drop that the trial's true one is surely (`SURE`) below."""
        samples = self._of(trial)
        return self._own(trial).inv_cdf(SURE) if samples is None else float(np.quantile(samples, SURE))

    def sure(self, trial: Trial, limit: float) -> float:
        """Probability that the trial's true drop is at most ``limit``."""
        samples = self._of(trial)
        return self._own(trial).cdf(limit) if samples is None else float((samples <= limit).mean())

    def _of(self, trial: Trial) -> np.ndarray[Any, Any] | None:
        """Samples of the true drop; of a quantised trial those of the one it was made of, and what it scored beyond that one: the
        two were lucky with the same examples.
        """
        if trial.number in self._samples:
            return self._samples[trial.number]
        made_of = trial.quantised.get("of") if trial.quantised else None
        if made_of not in self._samples:
            return None
        found: np.ndarray[Any, Any] = np.maximum(self._samples[made_of] + (trial.drop or 0.0) - self._scored[made_of], 0.0)
        return found

    def _own(self, trial: Trial) -> NormalDist:
        value, error = trial.evidence
        return NormalDist(value, max(_error(error, self.limits.reference[0]), 1e-12))


def _divergence(trial: Trial) -> float:
    assert trial.divergence is not None
    return max(trial.divergence.value, 0.0)


def _error(error: float | None, reference: float) -> float:
    return 0.1 * reference if error is None else error
