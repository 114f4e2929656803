"""Optuna's samplers by name, made anew for each trial so that (seed, trial number) decides every draw."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable

import optuna

from hwprune.errors import UnknownNameError

Make = Callable[[int], optuna.samplers.BaseSampler]


def _gp(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=8)


SAMPLERS: dict[str, tuple[str, Make]] = {
    "tpe": (
        "tree-structured Parzen estimator, multi-objective (Optuna's default)",
        lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, multivariate=True),
    ),
    "nsga2": (
        "genetic algorithm NSGA-II",
        lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=16),
    ),
    "gp": ("Gaussian process, log expected hypervolume improvement", _gp),
    "random": ("uniform random choices", lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "grid": (
        "one tied level for all units x criterion, evenly spaced (never the full product)",
        lambda seed: optuna.samplers.RandomSampler(seed=seed),
    ),
}
"""name -> (description, maker)"""


def check(name: str) -> None:
    """Raises `UnknownNameError`."""
    if name not in SAMPLERS:
        raise UnknownNameError("sampler", name, SAMPLERS)


def make(name: str, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for one trial. A resumed search draws what an uninterrupted one would have drawn."""
    check(name)
    draw = int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big") >> 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name][1](draw)
