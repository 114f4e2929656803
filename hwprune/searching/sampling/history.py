"""The finished trials of a study as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from hwprune.searching.sampling.problem import AllocationProblem, Array
from hwprune.searching.study.attributes import (
    DIVERGENCE,
    DIVERGENCE_WEIGHT,
    DROP_ESTIMATE,
    DROP_SD,
    DUPLICATE,
    PROPOSAL,
    REMEASURED,
    RESULT,
    SAVED,
    TRAINED_DROPS,
)


@dataclass(slots=True)
class History:
    """Finished trials as arrays, in order."""

    chosen: list[Array] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    drop: list[float] = field(default_factory=list)
    drop_sd: list[float] = field(default_factory=list)
    """Paired standard errors; NaN where nothing told them. Infinite: the drop is the one without training, and the search goes by
    the one after it."""
    ratio: list[float] = field(default_factory=list)
    ratio_sd: list[float] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    keys: set[bytes] = field(default_factory=set)
    saved: list[Mapping[str, float]] = field(default_factory=list)
    running: list[Array] = field(default_factory=list)
    duplicates: int = 0

    @property
    def position(self) -> int:
        """How many proposals came before, those that were lost and proposed again counted once: what draws follow from."""
        return len(self.keys) + self.duplicates


def nan_if_none(value: float | None) -> float:
    return np.nan if value is None else float(value)


def planned_parameters(trial: FrozenTrial) -> Mapping[str, Any]:
    """Parameters of a trial that is not finished, as far as they are known."""
    fixed = trial.system_attrs.get("fixed_params")
    return trial.params or (fixed if isinstance(fixed, dict) else {})


class HistoryReader:
    """Reads a study's trials as allocations; each finished trial once."""

    def __init__(self, problem: AllocationProblem) -> None:
        self._problem = problem
        self._read: dict[int, tuple[Any, ...]] = {}

    def read(self, study: optuna.Study, number: int) -> History:
        """All trials but ``number``."""
        seen = History()
        attributes = study._storage.get_study_user_attrs(study._study_id)
        newer, trained = attributes.get(REMEASURED) or {}, attributes.get(TRAINED_DROPS) or {}
        # `Study.get_trials` would give each thread's own older snapshot.
        for trial in study._storage.get_all_trials(study._study_id, deepcopy=False):
            if trial.number == number:
                continue
            if trial.state in (TrialState.RUNNING, TrialState.WAITING):
                chosen = self._problem.allocation(planned_parameters(trial))
                if chosen is not None and trial.number < number:
                    seen.running.append(chosen)
                    seen.keys.add(chosen.tobytes())
                continue
            if trial._trial_id not in self._read:
                self._read[trial._trial_id] = self._facts(trial)
            chosen, divergence, weight, drop, drop_sd, ratio, sd, kind, saved = self._read[trial._trial_id]
            if chosen is None:
                continue
            if DUPLICATE in trial.system_attrs:  # nothing new is known by it
                seen.duplicates += trial.system_attrs[DUPLICATE] != trial.number
                continue
            if trial.state == TrialState.FAIL and self._lost(trial):
                continue
            seen.keys.add(chosen.tobytes())
            if divergence is None and drop is None:
                continue
            if ratio is not None and "speedup" in newer.get(str(trial.number), {}):
                again = newer[str(trial.number)]["speedup"]
                ratio, sd = 1 / again["value"], (again["ci_high"] - again["ci_low"]) / 2 / 1.96 / again["value"] ** 2
            if trained and drop is not None:
                drop, drop_sd = trained.get(str(trial.number), (drop, np.inf))
                drop_sd = nan_if_none(drop_sd)
            for name, value in zip(
                ("chosen", "divergence", "weight", "drop", "drop_sd", "ratio", "ratio_sd", "kind", "saved"),
                (chosen, divergence, weight, nan_if_none(drop), drop_sd, nan_if_none(ratio), sd, kind, saved),
                strict=True,
            ):
                getattr(seen, name).append(value)
        return seen

    @staticmethod
    def _lost(trial: FrozenTrial) -> bool:
        """Did the process of a trial of hwprune die? It is proposed again, as if it had not been."""
        leased = any(key.startswith("hwprune:") and key != PROPOSAL for key in trial.system_attrs)
        return leased and RESULT not in trial.system_attrs

    def _facts(self, trial: FrozenTrial) -> tuple[Any, ...]:
        chosen = self._problem.allocation(trial.params)
        values = trial.values if trial.state == TrialState.COMPLETE else None
        drop = float(values[0]) if values else None
        ratio = 1 / float(values[1]) if values and values[1] > 0 else None
        given = trial.user_attrs.get(DIVERGENCE)
        divergence = max(float(given), 0.0) if given is not None else (None if drop is None else max(drop, 0.0))
        weight = float(trial.user_attrs.get(DIVERGENCE_WEIGHT, 1.0))
        sd = float(trial.user_attrs.get("ratio_sd", 0.0))
        drop_sd = nan_if_none(trial.user_attrs.get(DROP_SD))
        if drop is not None:
            drop = float(trial.user_attrs.get(DROP_ESTIMATE, drop))
        kind = str(trial.system_attrs.get(PROPOSAL, {}).get("kind", ""))
        real = {name: float(trial.user_attrs[SAVED + name]) for name in self._problem.saves if SAVED + name in trial.user_attrs}
        return chosen, divergence, weight, drop, drop_sd, ratio, sd, kind, real
