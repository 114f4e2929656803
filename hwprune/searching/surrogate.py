"""What the search believes of candidates that it has not evaluated: divergence, latency ratio and drop, with uncertainty.

Three small models, each refitted from all finished trials in milliseconds.

* Divergence: ln KL = alpha + beta ln(sum over items e^theta_u phi_u(x)) + misfit(x); phi_u is the item's share of the Fisher
  quadratic (with a quarter of its interactions, see `hwprune.sensitivity`). Gaussian posterior of (alpha, beta, theta) by
  Gauss-Newton, with a Gaussian process for the misfit: what the law gets wrong of a candidate it gets wrong of its neighbours
  too. (`benchmarks/samplers.py` compares this with what it replaced, on candidates that were not seen.)
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
"""Of ln KL of one candidate, its neighbours' apart."""
KL_FLOOR = 1e-6
RATIO_NOISE = 0.01
"""Of a measured ratio: session effects (`hwprune.latency.paired`)."""
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
    """

    errors: Sequence[Array]
    gram: Array | None = None
    correlation: float = field(init=False, default=1.0)
    """Rank correlation of the prior with what was evaluated."""
    _mean: Array = field(init=False, default_factory=lambda: np.zeros(0))
    _covariance: Array = field(init=False, default_factory=lambda: np.zeros((0, 0)))
    _starts: Array = field(init=False, default_factory=lambda: np.zeros(0, dtype=int))
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
        self._forget()

    def _forget(self) -> None:
        count = len(self.errors)
        scale, scale_sd = (np.log(FISHER_SCALE), 0.7) if self.gram is not None else (0.0, 2.0)
        self._mean = np.concatenate([[scale, 1.0], np.zeros(count)])
        self._covariance = np.diag([scale_sd**2, 0.15**2, *[SENSITIVITY**2] * count])
        self._phi, self._y = np.zeros((0, count)), np.zeros(0)
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

    def fit(self, chosen: Array, divergence: Array, weights: Array) -> None:
        """Update with evaluated candidates; ``weights``: how much each counts against one on the whole split."""
        self._forget()  # nothing is carried over: a resumed search must come to the same
        used = np.flatnonzero((divergence > 0) & (chosen > 0).any(axis=1))[-MOST_POINTS:]
        phi = self.contributions(chosen[used])
        used, phi = used[phi.sum(axis=1) > 0], phi[phi.sum(axis=1) > 0]
        if not len(used):
            return
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
                scaled = phi * np.exp(mean[2:])
                logs = np.log(scaled.sum(axis=1))
                jacobian = np.concatenate(
                    [np.ones((len(y), 1)), logs[:, None], mean[1] * scaled / scaled.sum(axis=1, keepdims=True)], axis=1
                )
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

    def sensitivities(self, draw: np.random.Generator | None = None) -> Array:
        """e^theta of the items: the posterior mean's, or of one draw (Thompson sampling)."""
        theta = self._mean if draw is None else self._draw(draw, 1)[0]
        found: Array = np.exp(np.clip(theta[2:], -3, 3))
        return found

    def samples(self, chosen: Array, draw: np.random.Generator, count: int) -> Array:
        """(count, allocations) of ln KL from the posterior; the first row is its mean. Of one allocation each: how the misfits
        of two of them go together is left out.
        """
        thetas = np.concatenate([self._mean[None], self._draw(draw, count - 1)])
        found = self._law(thetas, np.maximum(self.contributions(chosen), 1e-12))
        spread = np.full(len(chosen), MISFIT**2 * self._heat)
        if len(self._y):
            near = self._heat * self._kernel(np.sqrt(self._own(chosen)), self._places)
            known = near @ self._inverse
            found += (self._y - self._law(thetas, self._phi)) @ known.T
            spread = spread - (known * near).sum(axis=1)
        deviation = np.sqrt(np.maximum(spread, 0) + KL_NOISE**2)
        found[1:] += deviation * draw.standard_normal((count - 1, len(chosen)))
        return found

    @staticmethod
    def _law(thetas: Array, phi: Array) -> Array:
        """(draws, allocations) of ln KL without the misfit."""
        total = phi @ np.exp(np.clip(thetas[:, 2:], -3, 3)).T
        found: Array = thetas[:, :1] + thetas[:, 1:2] * np.log(total.T)
        return found

    def _draw(self, draw: np.random.Generator, count: int) -> Array:
        root = np.linalg.cholesky(self._covariance + 1e-10 * np.eye(len(self._mean)))
        found: Array = self._mean + draw.standard_normal((count, len(self._mean))) @ root.T
        return found


@dataclass(slots=True)
class RatioModel:
    """Latency of allocations as a share of the dense model's.

    Args:
        saved: item -> (options,), the share that each option saves by the table.
    """

    saved: Sequence[Array]
    heat: float = field(init=False, default=1.0)
    """How many times larger than told the variance of measured ratios is: what sessions differ by on a busy machine."""
    _mean: Array = field(init=False, default_factory=lambda: np.zeros(0))
    _root: Array = field(init=False, default_factory=lambda: np.zeros((0, 0)))
    _starts: Array = field(init=False, default_factory=lambda: np.zeros(0, dtype=int))
    _own: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        sizes = [len(s) for s in self.saved]
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
        self._own = sum(sizes) <= MOST_OPTIONS
        self.fit(np.zeros((0, len(sizes)), dtype=int), np.zeros(0), np.zeros(0), np.zeros(0))

    def _features(self, chosen: Array) -> Array:
        count, items = chosen.shape
        own = np.stack([self.saved[u][chosen[:, u]] for u in range(items)], axis=1) if items else np.zeros((count, 0))
        parts = [own.sum(axis=1, keepdims=True), own]
        if self._own:
            single = np.zeros((count, sum(len(s) for s in self.saved)))
            np.put_along_axis(single, chosen + self._starts, own, axis=1)
            parts.append(single)
        return np.concatenate(parts, axis=1)

    def fit(self, chosen: Array, ratios: Array, coupled: Array, sd: Array) -> None:
        """Update with measured ratios; ``coupled``: what couplings save; ``sd``: of each measurement."""
        items, options = len(self.saved), sum(len(s) for s in self.saved)
        spread = np.array([0.3, *[0.15] * items, *([0.1] * options if self._own else [])])
        prior = np.diag(spread**-2.0)
        information, self._mean, self.heat = prior, np.zeros(len(spread)), 1.0
        if len(chosen):
            features = self._features(chosen)
            told = RATIO_NOISE**2 * ratios**2 + sd**2
            heft = 1 / told
            # Residuals beside the table's own word; what is fitted is the correction.
            residual = (1 - ratios) - features[:, 0] - coupled
            for _ in range(REFITS if len(ratios) >= ENOUGH else 1):
                information = prior + features.T @ (heft[:, None] * features)
                self._mean = np.linalg.solve(information, features.T @ (heft * residual))
                if len(ratios) < ENOUGH:
                    break
                # Its scale by the median, so that a few disturbed measurements don't count for all; these get less weight.
                left = (residual - features @ self._mean) / np.sqrt(told)
                freedom = max(np.trace(np.linalg.solve(information, prior)) - len(spread) + len(ratios), len(ratios) / 3)
                scale = 1.4826 * float(np.median(np.abs(left))) * np.sqrt(len(ratios) / freedom)
                self.heat = float(np.clip(scale**2, 1.0, 400.0))
                far = np.abs(left) / np.sqrt(self.heat)
                heft = np.minimum(1.0, FAR / np.maximum(far, 1e-9)) / (told * self.heat)
        self._root = np.linalg.inv(np.linalg.cholesky(information))

    def predict(self, chosen: Array, coupled: Array, measured: bool = True) -> tuple[Array, Array]:
        """(ratios, standard deviations) of a new measurement, or of what many of them would come to."""
        features = self._features(chosen)
        mean = 1 - features[:, 0] - coupled - features @ self._mean
        sd = np.sqrt(((features @ self._root.T) ** 2).sum(axis=1))
        ratio = np.maximum(mean, 0.01)
        return ratio, np.hypot(sd, RATIO_NOISE * ratio * (np.sqrt(self.heat) if measured else 1.0))

    def smooth(self, chosen: Array, coupled: Array, ratios: Array, sd: Array) -> Array:
        """Measured ratios with what is known from the others: of many, the fastest were lucky."""
        expected, doubt = self.predict(chosen, coupled, measured=False)
        noise = self.heat * (RATIO_NOISE**2 * ratios**2 + sd**2)
        found: Array = (ratios * doubt**2 + expected * noise) / (doubt**2 + noise)
        return found

    def corrected(self) -> list[Array]:
        """What each option saves by now, item by item: for the knapsack."""
        found = []
        for u, saved in enumerate(self.saved):
            factor = 1 + self._mean[0] + self._mean[1 + u]
            own = self._mean[1 + len(self.saved) + self._starts[u] :][: len(saved)] if self._own else 0.0
            found.append(saved * (factor + own))
        return found


POWER = 1.5
"""Drop ~ sqrt(divergence) to the power of this: a judgement. Convolutional networks were seen below it, a transformer above;
where the drop itself is the divergence it is 2."""


@dataclass(slots=True)
class DropModel:
    """Drop of the metric as a monotone function of the divergence, through (0, 0).

    Half of it is what was seen, made monotone. The other half is a power law from (0, 0) to where the drop reaches ``far``:
    all trials are scored on the same few hundred examples, so the noise of that split is common to them and no number of trials
    averages it out. (Of MiniLM on SST-2 the small dev split says that moderate divergences cost nothing, or gain a point; on
    other sentences they cost. Without the law the small divergences look worthless, and the front gets no points there.)

    Args:
        scale: drop at a divergence of 1, as long as nothing is known; beyond what is known, the last slope goes on.
        far: the worst drop that matters.
    """

    scale: float = 0.15
    far: float = 0.1
    _x: Array = field(init=False, default_factory=lambda: np.zeros(1))
    _y: Array = field(init=False, default_factory=lambda: np.zeros(1))
    _slope: float = field(init=False, default=0.0)

    def fit(self, divergence: Array, drop: Array) -> None:
        """Pool adjacent violators over sqrt(KL), then straight lines between the means of the pools."""
        order = np.argsort(divergence)
        x, y = np.sqrt(np.maximum(divergence[order], 0)), drop[order]
        pools: list[list[float]] = [[0.0, 0.0, 3.0]]  # (sum of x, sum of y, weight): the dense model counts thrice
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            pools.append([a, b, 1.0])
            while len(pools) > 1 and pools[-2][1] / pools[-2][2] >= pools[-1][1] / pools[-1][2]:
                last = pools.pop()
                pools[-1] = [p + q for p, q in zip(pools[-1], last, strict=True)]
        # Every pool is a flat piece; its middle is a knot, so that more divergence always costs a little more.
        self._x = np.array([p[0] / p[2] for p in pools])
        # No search should believe that pruning makes a model better: that, too, is the split's noise.
        self._y = np.maximum([p[1] / p[2] for p in pools], 0.0)
        beyond = np.flatnonzero(self._y >= self.far)
        end = int(beyond[0]) if len(beyond) else len(self._y) - 1
        self._slope = float(self._y[end]) / float(self._x[end]) ** POWER if self._x[end] > 0 else 0.0

    def __call__(self, divergence: Array) -> Array:
        x = np.sqrt(np.maximum(divergence, 0))
        found: Array = np.interp(x, self._x, self._y)
        if len(self._x) > 1 and self._x[-1] > 0:
            slope = max(float(self._y[-1]) / float(self._x[-1]), 0.0)
            found = np.where(x > self._x[-1], self._y[-1] + slope * (x - self._x[-1]), found)
            found = (found + self._slope * x**POWER) / 2
        else:
            found = self.scale * x
        return found


def _ranks(a: Array, b: Array) -> float:
    from scipy.stats import rankdata

    x, y = rankdata(a), rankdata(b)
    if x.std() == 0 or y.std() == 0:
        return 1.0
    return float(np.corrcoef(x, y)[0, 1])


def improvement(drops: Array, ratios: Array, front: Array, reference: tuple[float, float]) -> Array:
    """Area that single points add to a front; both objectives are minimised.

    Args:
        drops, ratios: of the same shape.
        front: (points, 2) of (drop, ratio).
        reference: the worst corner.
    """
    inside = front[(front[:, 0] < reference[0]) & (front[:, 1] < reference[1])] if len(front) else front
    order = np.argsort(inside[:, 0]) if len(inside) else np.zeros(0, dtype=int)
    inside = inside[order]
    if len(inside):  # what is not dominated: falling ratio with rising drop
        falling = np.minimum.accumulate(inside[:, 1])
        inside = inside[np.concatenate([[True], inside[1:, 1] < falling[:-1]])]
    # Between two neighbours on the front the old boundary is the ratio of the left one.
    left = np.concatenate([[-np.inf], inside[:, 0]]) if len(inside) else np.array([-np.inf])
    right = np.concatenate([inside[:, 0], [reference[0]]]) if len(inside) else np.array([reference[0]])
    height = np.concatenate([[reference[1]], inside[:, 1]]) if len(inside) else np.array([reference[1]])
    shape = drops.shape
    d, r = drops.reshape(-1, 1), ratios.reshape(-1, 1)
    width = np.maximum(right[None] - np.maximum(left[None], d), 0)
    gain = np.maximum(height[None] - r, 0)
    found: Array = (width * gain).sum(axis=1).reshape(shape)
    return found
