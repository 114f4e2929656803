"""Samplers by name. Every draw follows from the seed and how many proposals came before, so that a resumed search goes on as it
would have.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hwprune.errors import UnknownNameError
from hwprune.searching.knapsack import DUPLICATE, TOLD, Item, KnapsackSampler, Limits

Inner = Callable[[int], optuna.samplers.BaseSampler]

DEFAULT = "knapsack"
UNIFORM = "uniform"
KNAPSACKS = ("knapsack", "knapsack-sweep", "threshold")
"""Those that propose from the items' prices, and need no warm start."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a sampler may know of the search.

    Attributes:
        trials: planned number of trials; 0: only time limits it.
        space: Optuna's distributions of the study.
        canonical: see `hwprune.searching.items.canonical`.
    """

    items: tuple[Item, ...] = ()
    coupled: Mapping[tuple[str, str], np.ndarray[Any, Any]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    trials: int = 0
    space: Mapping[str, BaseDistribution] = field(default_factory=dict)
    canonical: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


def position(study: optuna.Study, trial: FrozenTrial) -> int:
    """How many proposals came before a trial, those that were lost to a kill and are proposed again counted once."""
    count = 0
    for other in study._storage.get_all_trials(study._study_id, deepcopy=False):
        if other.number >= trial.number or other.state == TrialState.WAITING:
            continue
        lost = other.state == TrialState.FAIL and TOLD not in other.system_attrs
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


def _optuna(make: Inner) -> Callable[[int, Context], optuna.samplers.BaseSampler]:
    return lambda seed, _context: Seeded(make, seed)


def _knapsack(explore: bool) -> Callable[[int, Context], optuna.samplers.BaseSampler]:
    def make(seed: int, context: Context) -> optuna.samplers.BaseSampler:
        return KnapsackSampler(
            context.items, context.coupled, context.limits, seed, explore, context.trials or 40, context.space, context.canonical
        )

    return make


SAMPLERS: dict[str, tuple[str, Callable[[int, Context], optuna.samplers.BaseSampler]]] = {
    "knapsack": (
        "optima of a knapsack over measured time and predicted divergence, learning from every trial (default)",
        _knapsack(explore=True),
    ),
    "knapsack-sweep": ("the same knapsack at evenly spaced budgets, nothing learned", _knapsack(explore=False)),
    "tpe": (
        "tree-structured Parzen estimator, multi-objective (Optuna's default)",
        _optuna(lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True)),
    ),
    "nsga2": (
        "genetic algorithm NSGA-II",
        _optuna(lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=16)),
    ),
    "nsga3": (
        "genetic algorithm NSGA-III",
        _optuna(lambda seed: optuna.samplers.NSGAIIISampler(seed=seed, population_size=16)),
    ),
    "gp": (
        "Gaussian process, log expected hypervolume improvement",
        _optuna(lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=8)),
    ),
    "random": ("uniform random choices", _optuna(lambda seed: optuna.samplers.RandomSampler(seed=seed))),
    UNIFORM: (
        "one tied level for all units x criterion, evenly spaced (never the full product)",
        _optuna(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    ),
    "threshold": (
        "one threshold on the error for all units, as FastNAS decides",
        lambda _seed, context: ThresholdSampler(context.items, context.trials or 40, context.space),
    ),
}
"""name -> (description, maker from a seed and what is known of the search)"""


def check(name: str) -> None:
    """Raises `UnknownNameError`."""
    if name not in SAMPLERS:
        raise UnknownNameError("sampler", name, SAMPLERS)


def make(name: str, seed: int, context: Context) -> optuna.samplers.BaseSampler:
    """The sampler for a study."""
    check(name)
    return SAMPLERS[name][1](seed, context)
