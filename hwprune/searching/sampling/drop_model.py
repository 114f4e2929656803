"""From divergence to the drop of the metric, as a distribution: what was never tested keeps its chance.

``drop = reference * (KL / k) ** p`` for an unknown divergence k at which the drop reaches the reference, and an unknown power p.
The posterior is a grid over (ln k, p, offset). Three kinds of noise are told apart:

* of the split: every trial's drop has its own paired standard error;
* common to all trials, because all are scored on the same examples against the same dense model: the offset. (Of MiniLM on SST-2
  the small dev split says that moderate divergences gain a point; other sentences say that they cost one.) No number of trials
  averages it out;
* of candidates: of two with the same divergence one may cost twice as much as the other (`SCATTERS`).

A curve without doubt would make the gain of everything behind it exactly zero, and nothing would ever test it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hwprune.searching.sampling.error_model import Array

POWER, POWER_SD = 0.8, 0.4
"""Prior of ln p is about ln(POWER): drop ~ KL^0.8. Convolutional networks were seen below it, a transformer above."""
SCALE_SD = 1.6
"""Prior standard deviation of ln k."""
SCATTERS = {0.15: 0.2, 0.3: 0.3, 0.6: 0.5}
"""Relative standard deviations of the drops of candidates of one divergence, and what is believed of each before any trial. The
largest is a judgement from two networks (KL 0.72 cost 0.018, KL 0.09 cost 0.030); where drops follow the curve more closely, the
trials say so."""
DOUBT, PATIENT = 0.05, 0.2
"""Weight of beliefs that data change slowly, because no power law need hold; and the power of the likelihood then."""
OFFSETS = np.linspace(-2.25, 2.25, 7)
"""The common noise, in its standard deviations."""
SHARED = 0.7
"""Correlation of the split's noise in two candidates' drops: what both change, they change in the same examples. A judgement: the
told drops of 42 points of four searches (digits, MiniLM) were right on average with it."""
CENSORED = 2.5
"""Multiples of the reference beyond which only that it was passed counts: no power law holds where a metric saturates."""
FLOOR = 1e-9


class Curves(NamedTuple):
    """Curves of a posterior, an entry each: ln k, power, how far candidates scatter about the curve, and the common noise in
    standard deviations: positive where the split makes drops look larger than they are.
    """

    log_k: Array
    power: Array
    scatter: Array
    offset: Array


@dataclass(slots=True)
class DropModel:
    """Posterior of the drop given the divergence.

    Args:
        scale: prior median of the divergence at which the drop reaches ``reference``.
        reference: the worst drop that matters.
        scatters: relative standard deviation of drops about the curve -> what is believed of it at first.
    """

    scale: float = 0.2
    reference: float = 0.05
    scatters: Mapping[float, float] = field(default_factory=lambda: SCATTERS)
    split_error: float = field(init=False, default=0.0)
    """Median paired standard error of a drop on the split."""
    _log_k: Array = field(init=False, default_factory=lambda: np.zeros(0))
    _power: Array = field(init=False, default_factory=lambda: np.zeros(0))
    _scatter: Array = field(init=False, default_factory=lambda: np.zeros(0))
    _prior: Array = field(init=False, default_factory=lambda: np.zeros(0))
    _weights: Array = field(init=False, default_factory=lambda: np.zeros(0))
    _joint: Array = field(init=False, default_factory=lambda: np.zeros((0, 0)))
    """(offsets, curves); `_weights` is its sum over the offsets."""

    def __post_init__(self) -> None:
        log_k = np.log(self.scale) + SCALE_SD * np.linspace(-4, 4, 65)
        power = POWER * np.exp(POWER_SD * np.linspace(-2, 3, 11))
        k, p, s = np.meshgrid(log_k, power, np.array(list(self.scatters)), indexing="ij")
        self._log_k, self._power, self._scatter = k.ravel(), p.ravel(), s.ravel()
        prior = np.exp(-0.5 * ((self._log_k - np.log(self.scale)) / SCALE_SD) ** 2)
        prior *= np.exp(-0.5 * (np.log(self._power / POWER) / POWER_SD) ** 2)
        prior *= np.array([self.scatters[s] for s in self._scatter.tolist()])
        self._prior = prior / prior.sum()
        self._forget()

    def _forget(self) -> None:
        self._weights = self._prior
        common = np.exp(-0.5 * OFFSETS**2)
        self._joint = (common / common.sum())[:, None] * self._prior

    def fit(self, divergence: Array, drop: Array, error: Array) -> None:
        """Weigh the curves by finished trials.

        Args:
            divergence, drop: of each trial.
            error: paired standard error of each drop.
        """
        self._forget()
        if not len(drop):
            return
        near = drop <= CENSORED * self.reference  # ruined candidates of a metric without bounds have errors of their own
        self.split_error = float(np.median(error[near] if near.any() else error))
        error = np.maximum(error, 1e-3 * self.reference)
        alone = math.sqrt(1 - SHARED) * error
        total = np.full((len(OFFSETS), len(self._log_k)), -np.inf)
        for scatter in self.scatters:
            rows = np.flatnonzero(self._scatter == scatter)
            expected = self._curves(divergence, self._log_k[rows], self._power[rows])
            for place, offset in enumerate(OFFSETS.tolist()):
                total[place, rows] = self._likelihood(expected, drop - offset * math.sqrt(SHARED) * error, alone, scatter)
            # Scatters are compared by densities of drops, not of the scale on which they are compared with the curves.
            total[:, rows] -= (np.log(scatter) + np.log(np.maximum(drop, 0) + alone / scatter))[near].sum()
        total -= 0.5 * OFFSETS[:, None] ** 2
        joint, slow = (self._prior * np.exp(power * (total - total.max())) for power in (1.0, PATIENT))
        self._joint = (1 - DOUBT) * joint / joint.sum() + DOUBT * slow / slow.sum()
        self._weights = self._joint.sum(axis=0)

    def _likelihood(self, expected: Array, drop: Array, error: Array, scatter: float) -> Array:
        """(curves,): log likelihood of the trials' drops under curves of one scatter."""
        most = CENSORED * self.reference
        unit = error / scatter
        levelled = _levelled(expected, unit[None])
        away = (_levelled(drop, unit)[None] - levelled) / scatter
        logs = -0.5 * np.minimum(away**2, 16.0)  # one odd trial must not decide
        past = _upper_tail((_levelled(np.full(len(drop), most), unit)[None] - levelled) / scatter)
        found: Array = np.where((drop > most)[None], np.log(np.maximum(past, 1e-4)), logs).sum(axis=1)
        return found

    def _curves(self, divergence: Array, log_k: Array, power: Array) -> Array:
        """(curves, candidates)."""
        logs = np.log(np.maximum(divergence, FLOOR))
        exponent = power[:, None] * (logs[None] - log_k[:, None])
        found: Array = self.reference * np.exp(np.clip(exponent, -40, 8))
        return np.where(divergence[None] > 0, found, 0.0)

    def __call__(self, divergence: Array) -> Array:
        """The median drop of the posterior's curves: what is told, not what is decided by."""
        flat = np.atleast_1d(divergence).astype(float)
        curves = self._curves(flat.ravel(), self._log_k, self._power)
        order = np.argsort(curves, axis=0)
        cumulated = np.cumsum(self._weights[order], axis=0)
        at = (cumulated < 0.5).sum(axis=0)
        found: Array = np.take_along_axis(curves, np.take_along_axis(order, at[None], axis=0), axis=0)[0]
        return found.reshape(np.shape(divergence))

    def draw(self, generator: np.random.Generator, count: int) -> Curves:
        """So many curves of the posterior."""
        # Systematic sampling: few draws cover the posterior evenly, its rare beliefs included.
        places = (np.arange(count) + generator.random()) / count
        by_curve = self._joint.T.ravel()
        picked = np.searchsorted(np.cumsum(by_curve)[:-1], places)
        generator.shuffle(picked)
        curve, offset = np.divmod(picked, len(OFFSETS))
        return Curves(self._log_k[curve], self._power[curve], self._scatter[curve], OFFSETS[offset])

    def sampled(self, divergence: Array, curves: Curves, generator: np.random.Generator) -> Array:
        """Drops of candidates, each under its own curve and scatter.

        Args:
            divergence: (draws, candidates).
            curves: one a row.
        """
        logs = np.log(np.maximum(divergence, FLOOR))
        exponent = curves.power[:, None] * (logs - curves.log_k[:, None])
        mean = self.reference * np.exp(np.clip(exponent, -40, 8))
        found: Array = mean * np.exp(curves.scatter[:, None] * generator.standard_normal(mean.shape))
        return found

    def known(self, divergence: Array, drop: Array, error: Array, curves: Curves, generator: np.random.Generator) -> Array:
        """(draws, trials): true drops of finished trials, from the curve and from what was scored."""
        mean = self._curves(divergence, curves.log_k, curves.power)
        error = np.maximum(error, 1e-3 * self.reference)[None]
        drop = drop[None] - curves.offset[:, None] * math.sqrt(SHARED) * error
        error = math.sqrt(1 - SHARED) * error
        spread = np.maximum(curves.scatter[:, None] * mean, 1e-12)
        total = error**2 + spread**2
        centre = (mean * error**2 + drop * spread**2) / total
        found: Array = np.maximum(centre + error * spread / np.sqrt(total) * generator.standard_normal(mean.shape), 0.0)
        return found

    def corrected(self, drop: Array, error: Array) -> Array:
        """Scored drops without the common noise, as far as it is known."""
        found: Array = drop - OFFSETS @ self._joint.sum(axis=1) * math.sqrt(SHARED) * error
        return found

    @property
    def scatter(self) -> float:
        """The mean of what is believed of the scatter."""
        return float(self._weights @ self._scatter)

    def floor(self, limit: float | None) -> float:
        """Drops below it count alike: a quarter of the limit, or half of what the split can tell, whichever is less."""
        return min(0.25 * (self.reference if limit is None else limit), 0.5 * self.split_error)


def _levelled(drop: Array, unit: Array) -> Array:
    """Drops on a scale on which the noise of the split and of candidates together is the scatter everywhere: straight below zero,
    then more and more a logarithm. (With a spread that grows with what is expected, small expectations would look more likely.)

    Args:
        unit: the split's standard error over the scatter.
    """
    found: Array = np.where(drop > 0, np.log1p(np.maximum(drop, 0) / unit), drop / unit) + np.log(unit)
    return found


def _upper_tail(z: Array) -> Array:
    from scipy.special import ndtr

    found: Array = ndtr(-z)
    return found


def improvement(drops: Array, costs: Array, front: Array, reference: tuple[float, float]) -> Array:
    """Area that single points add to a front; both objectives are minimised.

    Args:
        drops, costs: of the same shape.
        front: (points, 2) of (drop, cost).
        reference: the worst corner.
    """
    inside = front[(front[:, 0] < reference[0]) & (front[:, 1] < reference[1])] if len(front) else front
    order = np.lexsort((inside[:, 1], inside[:, 0])) if len(inside) else np.zeros(0, dtype=int)
    inside = inside[order]
    if len(inside):  # what is not dominated: falling cost with rising drop
        falling = np.minimum.accumulate(inside[:, 1])
        inside = inside[np.concatenate([[True], inside[1:, 1] < falling[:-1]])]
    # Between two neighbours on the front the old boundary is the cost of the left one.
    left = np.concatenate([[-np.inf], inside[:, 0]]) if len(inside) else np.array([-np.inf])
    right = np.concatenate([inside[:, 0], [reference[0]]]) if len(inside) else np.array([reference[0]])
    height = np.concatenate([[reference[1]], inside[:, 1]]) if len(inside) else np.array([reference[1]])
    shape = drops.shape
    d, r = drops.reshape(-1, 1), costs.reshape(-1, 1)
    width = np.maximum(right[None] - np.maximum(left[None], d), 0)
    gain = np.maximum(height[None] - r, 0)
    found: Array = (width * gain).sum(axis=1).reshape(shape)
    return found
