"""The user's callbacks, called as Optuna calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optuna

Callback = Callable[[optuna.Study, optuna.trial.FrozenTrial], None]


def call(callbacks: Sequence[Callback], study: optuna.Study, number: int) -> bool:
    """Call each with the study and the trial that has finished, as `optuna.Study.optimize` does.

    Args:
        number: of the trial.

    Returns:
        Has one of them called ``study.stop()``?
    """
    if not callbacks:
        return False
    frozen = next(trial for trial in study.get_trials(deepcopy=False) if trial.number == number)
    study._thread_local.in_optimize_loop = True  # Optuna takes study.stop() only from its own loop, which ours stands for
    try:
        for callback in callbacks:
            callback(study, frozen)
    finally:
        study._thread_local.in_optimize_loop = False
    return bool(study._stop_flag)
