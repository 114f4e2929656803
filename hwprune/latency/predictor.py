"""Predicted latency: a sum over measured segments, corrected by whole-model measurements. Never called measured.

Three steps. (1) A segment that the table holds costs what was measured; one that it doesn't, what a regressor says (extra
trees on the logarithm, over a non-negative least-squares fit of work and traffic), with its own cross-validated error. (2)
The sum is corrected: seconds = a + b * total + w * bytes of weights + v * bytes of activations + sum over families (c_f *
total of the family), by Bayesian linear regression with priors a ~ N(0, 20 %), b ~ N(1, 30 %), w ~ N(0, 1 / 10 GB/s), v ~
N(0, 1 / 3 GB/s), c_f ~ N(0, 15 %): with no whole-model measurement it is the sum itself, with thirty the fused network's own
behaviour. The bytes have terms because a piece that runs alone finds its weights and inputs in the cache, and in a network
larger than the cache it does not. (3) The uncertainty holds the coefficients', the segments' and what the model can't
express (leave-one-out). A model that was measured itself costs what was measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwprune.latency.bench import Bench
from hwprune.latency.latency_table import GROUP, Entry, LatencyTable, Whole
from hwprune.latency.segments import Segment

Array = np.ndarray[Any, Any]

FEWEST = 12
"""Measured segments of an anchor from which its regressor is fitted."""
UNKNOWN = 0.5
"""Relative standard deviation of a segment that nothing is known about."""
NOISE = 0.007
"""Relative standard deviation of a whole-model measurement beside its own interval: the session's."""
CALL_SHARE = 0.2
FETCH = 1e-10
"""Seconds a byte: how much fetching weights from memory may add, one standard deviation (10 GB/s)."""
MOVE = 3e-10
"""Seconds a byte for what passes between segments, which also changes layouts on its way (3 GB/s)."""
_ITEM = 4
"""Bytes of a weight; another type changes only the meaning of the factor."""
UNCERTAIN = 0.05
"""Relative standard deviation above which a prediction triggers measurements."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds with a standard deviation; ``known`` is the share of the time that comes from measured segments."""

    seconds: float
    sd: float
    known: float

    @property
    def relative(self) -> float:
        return self.sd / self.seconds


class Regressor:
    """Seconds of segments of one anchor that were never measured.

    Attributes:
        error: cross-validated root mean square of ln(predicted / measured): its own held-out error.
    """

    def __init__(self, entries: Sequence[Entry], seed: int = 0) -> None:
        from sklearn.ensemble import ExtraTreesRegressor
        from sklearn.model_selection import KFold, cross_val_predict

        features = np.array([_features(e.features) for e in entries])
        seconds = np.array([e.seconds for e in entries])
        self._base = _Work(entries)
        residual = np.log(seconds) - np.log(self._base.seconds([e.features for e in entries]))
        make = ExtraTreesRegressor(n_estimators=60, min_samples_leaf=1, random_state=seed, n_jobs=1)
        folds = KFold(min(5, len(entries)), shuffle=True, random_state=seed)
        self.error = float(np.sqrt(np.mean((cross_val_predict(make, features, residual, cv=folds) - residual) ** 2)))
        self._trees = make.fit(features, residual)

    def predict(self, features: Mapping[str, float]) -> tuple[float, float]:
        """(seconds, standard deviation of its logarithm)."""
        row = np.array([_features(features)])
        each = np.array([tree.predict(row)[0] for tree in self._trees.estimators_])
        base = math.log(float(self._base.seconds([features])[0]))
        return math.exp(base + float(each.mean())), math.hypot(self.error, float(each.std()))


class _Work:
    """Non-negative least squares of seconds over work: a constant, multiply-accumulates padded to blocks of 16, bytes."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        from scipy.optimize import nnls

        rows = np.array([self._row(e.features) for e in entries])
        seconds = np.array([e.seconds for e in entries])
        weights = 1 / seconds  # relative errors count
        self._scale = np.maximum(rows.max(axis=0), 1e-30)
        self._coefficients, _ = nnls(rows / self._scale * weights[:, None], seconds * weights)
        self._floor = float(seconds.min()) / 4

    @staticmethod
    def _row(features: Mapping[str, float]) -> list[float]:
        padded = features["batches"] * features["rows"] * _up(features["columns"]) * _up(features["inner"])
        return [1.0, padded, features["macs"], features["bytes"], features["out"]]

    def seconds(self, features: Sequence[Mapping[str, float]]) -> Array:
        rows = np.array([self._row(f) for f in features]) / self._scale
        seconds: Array = np.maximum(rows @ self._coefficients, self._floor)
        return seconds


def _up(size: float) -> float:
    return math.ceil(size / 16) * 16


def _features(features: Mapping[str, float]) -> list[float]:
    logs = ("macs", "bytes", "weights", "in", "out", "batches", "rows", "columns", "inner")
    rest = ("columns_mod_16", "columns_mod_8", "inner_mod_16", "nodes", "sums", "activations", "moves")
    return [math.log1p(features[name]) for name in logs] + [features[name] for name in rest]


class LatencyModel:
    """Predicts the latency of models cut from one network on one target.

    Args:
        table: measured segments and models; it is read, not written. What changes in it is fitted again.
        network: which whole-model measurements count; those of other networks have other fusions.
    """

    def __init__(self, table: LatencyTable, network: str) -> None:
        self.table, self.network = table, network
        self._regressors: dict[str, Regressor | None] = {}
        self._sizes: dict[str, int] = {}
        self._guesses: dict[str, dict[str, tuple[float, float]]] = {}
        """By anchor and signature."""
        self._guessed_version = -1
        self._families: list[str] = []
        self._fitted_version = -1
        self.noise = 2 * NOISE

    # -- segments ----------------------------------------------------------------------------

    def segment(self, segment: Segment) -> tuple[float, float, bool]:
        """(seconds, standard deviation in seconds, was it measured)."""
        entry = self.table.entries.get(segment.signature)
        if entry is not None:
            return entry.seconds, entry.half_width_s / 1.96, True
        if self._guessed_version != self.table.version:
            self._forget_guesses()
        guess = self._guesses.get(segment.anchor, {}).get(segment.signature)
        if guess is None:
            guess = self._guess(segment)
            self._guesses.setdefault(segment.anchor, {})[segment.signature] = guess
        seconds, relative = guess
        return seconds, seconds * relative, False

    def regressor(self, anchor: str) -> Regressor | None:
        """The regressor of an anchor, or None with too few measurements; fitted again when the table has grown by a fifth."""
        entries = [entry for entry in self.table.entries.values() if entry.anchor == anchor]
        if len(entries) < FEWEST:
            return None
        if self._has_outgrown(anchor, len(entries)):
            self._regressors[anchor] = Regressor(entries)
            self._sizes[anchor] = len(entries)
            self._guesses.pop(anchor, None)
        return self._regressors[anchor]

    def _has_outgrown(self, anchor: str, entries: int) -> bool:
        """Is there no regressor of the anchor yet, or only one of a much smaller table?"""
        return anchor not in self._regressors or entries > 1.2 * self._sizes[anchor]

    def _forget_guesses(self) -> None:
        """Drop guesses that the table as it is now would not give: of segments without a regressor, or with one too old."""
        counts = Counter(entry.anchor for entry in self.table.entries.values())
        for anchor in list(self._guesses):
            if self._has_outgrown(anchor, counts[anchor]):
                del self._guesses[anchor]
        self._guessed_version = self.table.version

    def _guess(self, segment: Segment) -> tuple[float, float]:
        regressor = self.regressor(segment.anchor)
        if regressor is not None:
            return regressor.predict(segment.features())
        entries = list(self.table.entries.values())
        if not entries:
            return 1e-6 + segment.nbytes / 1e10 + segment.macs / 2e10, 2.0
        # Too few of its kind: the nearest in work, whatever it is.
        near = min(entries, key=lambda e: abs(math.log1p(e.features["macs"]) - math.log1p(segment.macs)) + abs(
            math.log1p(e.features["bytes"]) - math.log1p(segment.nbytes)))  # fmt: skip
        return near.seconds, UNKNOWN

    # -- whole models ------------------------------------------------------------------------

    def predict(self, segments: Sequence[Segment]) -> Prediction:
        """Seconds of a model."""
        self._fit()
        counts = Counter(segment.signature for segment in segments)
        if (whole := self._measured.get(frozenset(counts.items()))) is not None:
            return Prediction(whole.seconds, math.hypot(whole.half_width_s / 1.96, NOISE * whole.seconds), 1.0)
        parts = [self.segment(segment) for segment in segments]
        weights = sum(_ITEM * sum(tensor.elements for tensor in segment.weights) for segment in segments)
        moved = sum(_ITEM * sum(s.tensors[name].elements for name in (*s.inputs, *s.outputs)) for s in segments)
        families = _sums((segment.family, part[0]) for segment, part in zip(segments, parts, strict=True))
        row = self._row(families, weights, moved)
        mean = float(row @ self._mean)
        total = sum(part[0] for part in parts)
        if mean <= 0.1 * total:  # far outside of what it was fitted on
            mean = total
        variance = float(row @ self._covariance @ row)
        # Segments that occur twice err together.
        spread = {segment.signature: part[1] for segment, part in zip(segments, parts, strict=True)}
        variance += sum((counts[key] * sd) ** 2 for key, sd in spread.items()) + (self.noise * mean) ** 2
        share = sum(part[0] for part in parts if part[2]) / total if total else 0.0
        return Prediction(mean, math.sqrt(variance), share)

    def observations(self) -> list[Whole]:
        """Whole-model measurements of the network whose segments are all known."""
        return [
            w
            for w in self.table.models.values()
            if w.network == self.network and all(s in self.table.entries for s in w.segments)
        ]

    def _fit(self) -> None:
        if self._fitted_version == self.table.version:
            return
        self._fitted_version = self.table.version
        wholes = self.observations()
        self._measured = {frozenset(w.segments.items()): w for w in wholes}
        entries = self.table.entries
        sums = [_sums((entries[s].family, n * entries[s].seconds) for s, n in w.segments.items()) for w in wholes]
        self._families = sorted({family for families in sums for family in families})
        scale = float(np.median([w.seconds for w in wholes])) if wholes else 0.0
        self._prior = np.array([0.0, 1.0, 0.0, 0.0, *[0.0] * len(self._families)])
        fetched = [sum(_ITEM * n * entries[s].features["weights"] for s, n in w.segments.items()) for w in wholes]
        moved = [
            sum(_ITEM * n * (entries[s].features["in"] + entries[s].features["out"]) for s, n in w.segments.items())
            for w in wholes
        ]
        # Without a measured model there is no scale for a constant: none is assumed.
        fetch, move = (FETCH, MOVE) if wholes else (1e-16, 1e-16)
        prior_sd = np.array([max(CALL_SHARE * scale, 1e-9), 0.3, fetch, move, *[0.15] * len(self._families)])
        self._precision = np.diag(prior_sd**-2.0)
        rows = np.array([self._row(*totals) for totals in zip(sums, fetched, moved, strict=True)]).reshape(
            len(wholes), len(self._prior)
        )
        seconds = np.array([w.seconds for w in wholes])
        sds = np.array([w.half_width_s / 1.96 for w in wholes])
        self.noise = 2 * NOISE
        for _ in range(2):  # the second time with the noise that the first found
            weights = 1 / np.hypot(sds, self.noise * seconds) ** 2 if wholes else np.zeros(0)
            information = self._precision + rows.T @ (weights[:, None] * rows)
            self._covariance = np.linalg.inv(information)
            self._mean = self._covariance @ (self._precision @ self._prior + rows.T @ (weights * seconds))
            if len(wholes) < 8:
                break
            leverage = np.einsum("ij,jk,ik->i", rows, self._covariance, rows) * weights
            left_out = (seconds - rows @ self._mean) / np.maximum(1 - leverage, 0.05)
            self.noise = float(max(NOISE, np.sqrt(np.mean((left_out / seconds) ** 2))))

    def _row(self, sums: Mapping[str, float], weights: float, moved: float) -> Array:
        return np.array([1.0, sum(sums.values()), weights, moved, *[sums.get(family, 0.0) for family in self._families]])


def measure_until_certain(model: LatencyModel, segments: Sequence[Segment], bench: Bench, limit: float = UNCERTAIN) -> Prediction:
    """A prediction; if it is less certain than ``limit`` (relative), its unmeasured segments are measured first.

    The segments that contribute most to the uncertainty come first, and it stops as soon as the rest is certain enough.
    """
    prediction = model.predict(segments)
    while prediction.relative > limit:
        missing = model.table.missing(segments)
        if not missing:
            return prediction
        missing.sort(key=lambda segment: -model.segment(segment)[1])
        model.table.fill(bench, missing[:GROUP])
        prediction = model.predict(segments)
    return prediction


def _sums(pairs: Any) -> dict[str, float]:
    totals: dict[str, float] = {}
    for family, seconds in pairs:
        totals[family] = totals.get(family, 0.0) + seconds
    return totals
