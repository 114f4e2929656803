"""Finishing trials: what came of them, in Optuna's terms and in ours."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from hwprune.records.trial import STOPPED, Trial
from hwprune.searching.study import dashboard, lease
from hwprune.searching.study.attributes import (
    DIVERGENCE,
    DIVERGENCE_WEIGHT,
    DROP_ESTIMATE,
    DROP_SD,
    DUPLICATE,
    FILE,
    ORIGIN,
    RESULT,
    SAVED,
)
from hwprune.searching.study.backend import StudyBackend


class TrialFinisher:
    """Writes results of trials into the study; the numbers are there before a trial's state says that it is finished."""

    def __init__(self, backend: StudyBackend) -> None:
        self._backend = backend

    def tell(
        self,
        asked: optuna.Trial,
        trial: Trial,
        constraints: Mapping[str, float],
        share: float = 1.0,
        dense_bytes: int | None = None,
    ) -> bool:
        """Store a finished trial; the numbers are there before its state says that it is finished.

        Args:
            share: of the validation examples that the divergence was computed on.
            dense_bytes: of the dense model's file.

        Returns:
            False: another worker has finished it meanwhile, because this one's lease ran out; nothing is stored.
        """
        try:
            with self._backend.errors():
                self._backend.set_attribute(asked._trial_id, RESULT, trial.to_json())
                for key, value in _readable(trial).items():
                    asked.set_user_attr(key, value)
                if trial.divergence is not None:
                    asked.set_user_attr(DIVERGENCE_WEIGHT, share)
                if dense_bytes is not None and trial.size_bytes is not None:
                    asked.set_user_attr(SAVED + FILE, dense_bytes - trial.size_bytes)
                dashboard.write_note(asked, dashboard.trial_note(trial, str(asked.user_attrs.get(dashboard.CUT, ""))))
                if trial.measured:
                    assert trial.drop is not None and trial.speedup is not None
                    for key, value in constraints.items():
                        asked.set_constraint(key, value)
                    self._backend.end(asked, TrialState.COMPLETE, (trial.drop, trial.speedup.value))
                else:
                    self._backend.end(asked, TrialState.PRUNED if trial.state == STOPPED else TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return True

    def tell_duplicate(self, asked: optuna.Trial, earlier: Trial | int, constraints: Mapping[str, float]) -> None:
        """The recipe was evaluated before: the sampler learns the known numbers, nothing is measured."""
        number = earlier if isinstance(earlier, int) else earlier.number
        with self._backend.errors(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._backend.set_attribute(asked._trial_id, DUPLICATE, number)
            asked.set_user_attr("duplicate of", number)
            if isinstance(earlier, Trial) and earlier.measured:
                assert earlier.drop is not None and earlier.speedup is not None
                if earlier.divergence is not None:
                    asked.set_user_attr(DIVERGENCE, earlier.divergence.value)
                for key, value in constraints.items():
                    asked.set_constraint(key, value)
                self._backend.end(asked, TrialState.COMPLETE, (earlier.drop, earlier.speedup.value))
            else:
                self._backend.end(asked, TrialState.FAIL)

    def number_for(self, of: int, origin: str) -> int:
        """The number of a new trial that trains another one's candidate; `add_trained` finishes it.

        Samplers learn nothing from it: it has the other one's parameters.
        """
        frozen = self._backend.by_number(of)
        with self._backend.errors():
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING, params=frozen.params, distributions=frozen.distributions,
                user_attrs={ORIGIN: origin}, system_attrs={DUPLICATE: of, lease.LEASE: lease.own()},
            )  # fmt: skip
            return self._backend.add_running(template)

    def add_trained(self, trial: Trial, constraints: Mapping[str, float]) -> None:
        """Finish a trial of `number_for`."""
        frozen = self._backend.by_number(trial.number)
        self.tell(self._backend.asked(frozen._trial_id), trial, constraints)

    def number_of_derived(self, origin: str) -> int:
        """The number of a new trial that is made of another one, or of the dense model; `add_derived` finishes it.

        It has no parameters, and ends as failed in Optuna's eyes, with its numbers in its attributes: no choice of the search has
        made its speedup, and samplers that read the study must not believe that one has.
        """
        with self._backend.errors():
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING, user_attrs={ORIGIN: origin}, system_attrs={DUPLICATE: -1, lease.LEASE: lease.own()}
            )
            return self._backend.add_running(template)

    def add_derived(self, trial: Trial) -> None:
        """Finish a trial of `number_of_derived`."""
        frozen = self._backend.by_number(trial.number)
        asked = self._backend.asked(frozen._trial_id)
        with self._backend.errors():
            self._backend.set_attribute(asked._trial_id, RESULT, trial.to_json())
            for key, value in _readable(trial).items():
                asked.set_user_attr(key, value)
            dashboard.write_note(asked, dashboard.trial_note(trial, ""))
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._backend.end(asked, TrialState.FAIL)


def _readable(trial: Trial) -> dict[str, Any]:
    """What a dashboard shows in a column each."""
    found: dict[str, Any] = {"state": trial.state, "recipe": trial.recipe.digest}
    if trial.divergence is not None:
        found[DIVERGENCE] = trial.divergence.value
    value, error = trial.evidence
    if error is not None:
        found |= {DROP_ESTIMATE: value, DROP_SD: error}
    if trial.metric is not None:
        found["metric"] = trial.metric.value
    if trial.latency is not None:
        found["latency_ms"] = 1000 * trial.latency.value
    if trial.speedup is not None:
        half = (trial.speedup.ci_high - trial.speedup.ci_low) / 2
        found["speedup"] = trial.speedup.value
        found["ratio_sd"] = half / 1.96 / trial.speedup.value**2
    if trial.size_bytes is not None:
        found["size_mb"] = trial.size_bytes / 1e6
    if trial.failure is not None:
        found["reason"] = f"{trial.failure.stage}: {trial.failure.reason}"
    return found
