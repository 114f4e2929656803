"""Samplers by name. Every draw follows from the seed and how many proposals came before, so that a resumed search goes on as it
would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from hwprune.errors import UnknownNameError
from hwprune.searching.sampling.knapsack import KnapsackSampler
from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.seeded import Inner, Seeded
from hwprune.searching.sampling.threshold import ThresholdSampler
from hwprune.searching.space.space import SearchSpace

UNIFORM = "uniform"
KNAPSACKS = ("knapsack", "knapsack-sweep", "threshold")
"""Those that propose from the items' savings, and need no warm start."""


@dataclass(frozen=True, slots=True)
class SamplerContext:
    """What a sampler may know of the search.

    Attributes:
        posterior: what is believed of candidates; early stopping shares it.
        trials: planned number of trials; 0: only time limits it.
        space: Optuna's distributions of the study.
    """

    posterior: Posterior
    trials: int = 0
    space: Mapping[str, BaseDistribution] = field(default_factory=dict)


def _optuna(make: Inner) -> Callable[[int, SamplerContext], optuna.samplers.BaseSampler]:
    return lambda seed, _context: Seeded(make, seed)


def _knapsack(*, explore: bool) -> Callable[[int, SamplerContext], optuna.samplers.BaseSampler]:
    def make(seed: int, context: SamplerContext) -> optuna.samplers.BaseSampler:
        return KnapsackSampler(
            context.posterior.problem.items, seed=seed, explore=explore, trials=context.trials or 40, space=context.space,
            posterior=context.posterior,
        )  # fmt: skip

    return make


SAMPLERS: dict[str, tuple[str, Callable[[int, SamplerContext], optuna.samplers.BaseSampler]]] = {
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
        lambda _seed, context: ThresholdSampler(context.posterior.problem.items, context.trials or 40, context.space),
    ),
}
"""name -> (description, maker from a seed and what is known of the search)"""


def check(name: str) -> None:
    """Raises `UnknownNameError`."""
    if name not in SAMPLERS:
        raise UnknownNameError("sampler", name, SAMPLERS)


def make(name: str, seed: int, context: SamplerContext) -> optuna.samplers.BaseSampler:
    """The sampler for a study."""
    check(name)
    return SAMPLERS[name][1](seed, context)


def warm_start(name: str, trials: int, space: SearchSpace) -> list[dict[str, Any]]:
    """Parameters to propose first: a uniform sweep, for samplers that know nothing of the choices.

    The uniform sampler has nothing else.

    Args:
        trials: planned number of trials; 0: only time limits it.
    """
    if name in KNAPSACKS:
        return []
    if name == UNIFORM:
        count = max(1, (trials or 40) // len(space.file.criteria))
        methods: tuple[str, ...] = space.file.criteria
    else:
        count = min(8, max(1, trials // 4)) if trials else 8
        methods = space.file.criteria[:1]
    top = max(space.file.max_sparsity, *space.file.mask_sparsities)
    return [space.uniform(top * step / count, method) for step in range(1, count + 1) for method in methods]
