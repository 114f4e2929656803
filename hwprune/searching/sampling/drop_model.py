"""From divergence to the drop of the metric."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hwprune.searching.sampling.error_model import Array

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
