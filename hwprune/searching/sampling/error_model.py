"""What the search believes of candidates that it has not evaluated: divergence, latency ratio and drop, with uncertainty.

Three small models, each refitted from all finished trials in milliseconds.

* Divergence: ln KL = alpha + beta ln(sum over items e^(theta_u + tau_k) phi_u(x)) + misfit(x); phi_u is the item's share of the
  Fisher quadratic (with a quarter of its interactions, see `hwprune.calibration.sensitivity`), k the kind of what is done to it:
  compensation repairs what a branch did far better than what a narrower residual stream did. Gaussian posterior of (alpha, beta,
  theta, tau) by Gauss-Newton, with a Gaussian process for the misfit: the law's errors are correlated
  between similar candidates. (`benchmarks/samplers.py` compares this with what it replaced, on candidates that were not seen.)
* Latency ratio: 1 - sum over items of savings, times (1 + global + item + option), Bayesian linear regression with priors of 30,
  15 and 10 %: every whole-model measurement corrects the table.
* Drop: a monotone function of the divergence (isotonic regression), because the metric of a thousand examples moves in steps and
  the divergence does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SENSITIVITY = 0.15
"""Prior standard deviation of theta. Wider ones fit the same evaluations as well and predict the next ones worse."""
KIND = 0.5
"""Prior standard deviation of tau."""
INTERACTIONS = 0.25
"""Share of the quadratic's cross terms that is believed: it holds for small changes of the outputs only. Of three networks two
are predicted worse by all of them than by none, and one better (`benchmarks/samplers.py`).
"""
MISFIT, REACH = 0.2, 3.0
"""Standard deviation of the misfit of ln KL, and its range in square roots of a typical candidate's error."""
MOST_POINTS = 400
"""Evaluations that are fitted: the newest, since cost grows with their cube."""
TRUSTED = 0.95
"""Rank correlation of predicted and evaluated divergence from which few draws of other sensitivities are enough."""
FISHER_SCALE = 0.4
"""True KL over the Fisher quadratic, as far as it is the same from network to network (methods 9.3)."""
KL_NOISE = 0.05
"""Standard deviation of ln KL of one candidate beside its neighbours."""
KL_FLOOR = 1e-6
RATIO_NOISE = 0.01
"""Relative standard deviation of a measured ratio: session effects (`hwprune.latency.paired`)."""
ENOUGH, REFITS, FAR = 8, 4, 2.5
"""Measurements from which their noise is estimated; rounds of it; deviations beyond which a measurement counts for less."""
MOST_OPTIONS = 800
"""Options up to which each has a correction of its own."""


@dataclass(slots=True)
class ErrorModel:
    """Divergence of allocations.

    Args:
        errors: item -> (options,), prior divergence (any common scale) of each option alone.
        gram: (all options, all options), the Fisher quadratic's inner products; its diagonal equals the errors. None: no
            interactions are known.
        kinds: item -> (options,), a number for what each option does; None: all do the same.
    """

    errors: Sequence[Array]
    gram: Array | None = None
    kinds: Sequence[Array] | None = None
    correlation: float = field(init=False, default=1.0)
    """Rank correlation of the prior with what was evaluated."""
    _mean: Array = field(init=False, default_factory=lambda: np.zeros(0))
    _covariance: Array = field(init=False, default_factory=lambda: np.zeros((0, 0)))
    _starts: Array = field(init=False, default_factory=lambda: np.zeros(0, dtype=int))
    _kind_count: int = field(init=False, default=1)
    _phi: Array = field(init=False, default_factory=lambda: np.zeros((0, 0)))
    _y: Array = field(init=False, default_factory=lambda: np.zeros(0))
    _places: Array = field(init=False, default_factory=lambda: np.zeros((0, 0)))
    _inverse: Array = field(init=False, default_factory=lambda: np.zeros((0, 0)))
    _reach: float = field(init=False, default=1.0)
    _heat: float = field(init=False, default=1.0)
    """How much larger the misfit's variance is than expected."""

    def __post_init__(self) -> None:
        sizes = [len(e) for e in self.errors]
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
        self._kind_count = 1 + max((int(kinds.max()) for kinds in self.kinds or () if len(kinds)), default=0)
        self._forget()

    def _forget(self) -> None:
        count, kinds = len(self.errors), self._kind_count if self._kind_count > 1 else 0
        scale, scale_sd = (np.log(FISHER_SCALE), 0.7) if self.gram is not None else (0.0, 2.0)
        self._mean = np.concatenate([[scale, 1.0], np.zeros(count + kinds)])
        self._covariance = np.diag([scale_sd**2, 0.15**2, *[SENSITIVITY**2] * count, *[KIND**2] * kinds])
        self._phi, self._y = np.zeros((0, count * self._kind_count)), np.zeros(0)
        self._places, self._inverse = np.zeros((0, count)), np.zeros((0, 0))
        self._reach = self._heat = 1.0

    def _own(self, chosen: Array) -> Array:
        count, items = chosen.shape
        return np.stack([self.errors[u][chosen[:, u]] for u in range(items)], axis=1) if items else np.zeros((count, 0))

    def contributions(self, chosen: Array) -> Array:
        """phi: (allocations, items), the items' shares of the predicted divergence; never negative."""
        own = self._own(chosen)
        if self.gram is None:
            return own
        places = chosen + self._starts
        found = np.empty_like(own)
        for row in range(0, len(chosen), 256):
            part = places[row : row + 256]
            inner = self.gram[part[:, :, None], part[:, None, :]]
            found[row : row + 256] = inner.sum(axis=2)
        return np.maximum(own + INTERACTIONS * (found - own), 0.2 * own)

    def _by_kind(self, chosen: Array, phi: Array) -> Array:
        """(allocations, items x kinds): the items' shares, each in the column of what is done to it."""
        if self.kinds is None or self._kind_count == 1:
            return phi
        kinds = np.stack([self.kinds[u][chosen[:, u]] for u in range(chosen.shape[1])], axis=1)
        found = np.zeros((*phi.shape, self._kind_count))
        np.put_along_axis(found, kinds[:, :, None], phi[:, :, None], axis=2)
        return found.reshape(len(phi), -1)

    def _factors(self, thetas: Array) -> Array:
        """(draws, items x kinds): e^(theta + tau)."""
        count = len(self.errors)
        theta, tau = thetas[:, 2 : 2 + count], thetas[:, 2 + count :]
        if tau.shape[1]:
            theta = (theta[:, :, None] + tau[:, None, :]).reshape(len(thetas), -1)
        found: Array = np.exp(np.clip(theta, -3, 3))
        return found

    def fit(self, chosen: Array, divergence: Array, weights: Array) -> None:
        """Update with evaluated candidates; ``weights``: how much each counts against one on the whole split."""
        self._forget()  # nothing is carried over: a resumed search must come to the same
        used = np.flatnonzero((divergence > 0) & (chosen > 0).any(axis=1))[-MOST_POINTS:]
        phi = self.contributions(chosen[used])
        used, phi = used[phi.sum(axis=1) > 0], phi[phi.sum(axis=1) > 0]
        if not len(used):
            return
        phi = self._by_kind(chosen[used], phi)
        items, kinds = len(self.errors), self._kind_count
        w = weights[used]
        y = np.log(np.maximum(divergence[used], KL_FLOOR))
        total = phi.sum(axis=1)
        self.correlation = _ranks(total, y) if len(y) >= 8 else 1.0
        prior_mean, precision = self._mean.copy(), np.diag(1 / np.diag(self._covariance))
        # The scale differs between networks by more than a factor of two, and one evaluation tells it.
        prior_mean[0] = float(np.median(y - np.log(total)))
        mean = prior_mean.copy()
        self._phi, self._y, self._places = phi, y, np.sqrt(self._own(chosen[used]))
        self._reach = REACH * float(np.sqrt(np.median(total)))
        covariance = self._kernel(self._places, self._places) + np.diag(KL_NOISE**2 / w)
        for once_more in (True, False):
            self._inverse = np.linalg.inv(covariance) / self._heat
            for _ in range(8):
                scaled = phi * self._factors(mean[None])[0]
                logs = np.log(scaled.sum(axis=1))
                parts = mean[1] * (scaled / scaled.sum(axis=1, keepdims=True)).reshape(len(y), items, kinds)
                columns = [np.ones((len(y), 1)), logs[:, None], parts.sum(axis=2)]
                jacobian = np.concatenate([*columns, *([parts.sum(axis=1)] if kinds > 1 else [])], axis=1)
                residual = y - (mean[0] + mean[1] * logs)
                information = precision + jacobian.T @ self._inverse @ jacobian
                step = np.linalg.solve(information, jacobian.T @ (self._inverse @ residual) + precision @ (prior_mean - mean))
                mean = mean + np.clip(step, -1.0, 1.0)
                mean[1] = float(np.clip(mean[1], 0.5, 2.0))
                if np.abs(step).max() < 1e-4:
                    break
            if not once_more or len(y) < 8:
                break
            freedom = max(len(y) - np.trace(np.linalg.solve(information, information - precision)), len(y) / 3)
            self._heat = float(np.clip(residual @ self._inverse @ residual / freedom, 0.1, 16.0))
        self._mean, self._covariance = mean, np.linalg.inv(information)

    def _kernel(self, one: Array, other: Array) -> Array:
        """Covariance of the misfit of allocations, by how far apart their errors are."""
        found: Array = MISFIT**2 * np.exp(-np.abs(one[:, None] - other[None]).sum(axis=2) / self._reach)
        return found

    def sensitivities(self, draw: np.random.Generator | None = None) -> list[Array]:
        """Item -> (options,), e^(theta + tau): the posterior mean's, or of one draw (Thompson sampling)."""
        theta = self._mean if draw is None else self._draw(draw, 1)[0]
        factors = self._factors(theta[None])[0].reshape(len(self.errors), -1)
        if self.kinds is None or self._kind_count == 1:
            return [np.repeat(factors[u], len(errors)) for u, errors in enumerate(self.errors)]
        return [factors[u][kinds] for u, kinds in enumerate(self.kinds)]

    def samples(self, chosen: Array, draw: np.random.Generator, count: int) -> Array:
        """(count, allocations) of ln KL from the posterior; the first row is its mean. Of one allocation each: how the misfits
        of two of them go together is left out.
        """
        thetas = np.concatenate([self._mean[None], self._draw(draw, count - 1)])
        found = self._law(thetas, self._by_kind(chosen, np.maximum(self.contributions(chosen), 1e-12)))
        spread = np.full(len(chosen), MISFIT**2 * self._heat)
        if len(self._y):
            near = self._heat * self._kernel(np.sqrt(self._own(chosen)), self._places)
            known = near @ self._inverse
            found += (self._y - self._law(thetas, self._phi)) @ known.T
            spread = spread - (known * near).sum(axis=1)
        deviation = np.sqrt(np.maximum(spread, 0) + KL_NOISE**2)
        found[1:] += deviation * draw.standard_normal((count - 1, len(chosen)))
        return found

    def _law(self, thetas: Array, phi: Array) -> Array:
        """(draws, allocations) of ln KL without the misfit."""
        total = phi @ self._factors(thetas).T
        found: Array = thetas[:, :1] + thetas[:, 1:2] * np.log(total.T)
        return found

    def _draw(self, draw: np.random.Generator, count: int) -> Array:
        root = np.linalg.cholesky(self._covariance + 1e-10 * np.eye(len(self._mean)))
        found: Array = self._mean + draw.standard_normal((count, len(self._mean))) @ root.T
        return found


def _ranks(a: Array, b: Array) -> float:
    from scipy.stats import rankdata

    x, y = rankdata(a), rankdata(b)
    if x.std() == 0 or y.std() == 0:
        return 1.0
    return float(np.corrcoef(x, y)[0, 1])
