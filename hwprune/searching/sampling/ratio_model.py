"""Latency ratio of a recipe from predicted savings and measured trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hwprune.searching.sampling.error_model import ENOUGH, FAR, MOST_OPTIONS, RATIO_NOISE, REFITS, Array


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

    def predict(self, chosen: Array, coupled: Array, *, measured: bool = True) -> tuple[Array, Array]:
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
