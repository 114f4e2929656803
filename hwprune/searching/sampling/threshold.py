"""The threshold sampler: one global sparsity threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from hwprune.searching.sampling.problem import Item
from hwprune.searching.sampling.seeded import position


@final
class ThresholdSampler(optuna.samplers.BaseSampler):
    """One threshold on the error for all items, swept over the trials: each takes its fastest choice below it.

    As FastNAS (NVIDIA Model Optimizer) decides, which searches the one threshold that meets a budget; here the errors are the
    predicted divergences and the time comes from the table.
    """

    def __init__(self, items: Sequence[Item], trials: int, space: Mapping[str, BaseDistribution]) -> None:
        self.items, self.trials, self._space = tuple(items), max(1, trials), dict(space)
        errors = sorted({c.error for item in self.items for c in item.choices if c.error > 0}) or [0.0]
        self._thresholds = np.geomspace(max(errors[0], 1e-12), max(errors[-1], 1e-12), self.trials + 2)[1:-1]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return self._space

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        threshold = self._thresholds[position(study, trial) % len(self._thresholds)]
        parameters: dict[str, Any] = {}
        for item in self.items:
            fits = [c for c in item.choices if c.error <= threshold]
            parameters |= dict(max(fits, key=lambda c: c.saved).parameters)
        return parameters

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return optuna.samplers.RandomSampler(seed=0).sample_independent(study, trial, param_name, param_distribution)
