"""Seeds of samplers that do not depend on how many processes propose."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, final

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hwprune.searching.study.attributes import DUPLICATE, RESULT

Inner = Callable[[int], optuna.samplers.BaseSampler]


def position(study: optuna.Study, trial: FrozenTrial) -> int:
    """How many proposals came before a trial, those that were lost to a kill and are proposed again counted once."""
    count = 0
    for other in study._storage.get_all_trials(study._study_id, deepcopy=False):
        if other.number >= trial.number or other.state == TrialState.WAITING:
            continue
        lost = other.state == TrialState.FAIL and RESULT not in other.system_attrs
        count += not lost or other.system_attrs.get(DUPLICATE, other.number) != other.number
    return count


@final
class Seeded(optuna.samplers.BaseSampler):
    """Makes one of Optuna's samplers anew for each trial, from the seed and how many proposals came before."""

    def __init__(self, make: Inner, seed: int) -> None:
        self._make, self._seed = make, seed
        self._current: tuple[int, optuna.samplers.BaseSampler] | None = None

    def _inner(self, number: int) -> optuna.samplers.BaseSampler:
        if self._current is None or self._current[0] != number:
            draw = int.from_bytes(hashlib.sha256(f"{self._seed} {number}".encode()).digest()[:4], "big") >> 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._current = (number, self._make(draw))
        return self._current[1]

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner(position(study, trial)).before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner(position(study, trial)).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner(position(study, trial)).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner(position(study, trial)).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: optuna.trial.TrialState, values: Sequence[float] | None
    ) -> None:
        self._inner(position(study, trial)).after_trial(study, trial, state, values)
