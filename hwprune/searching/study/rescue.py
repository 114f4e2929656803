"""What dead workers left: given back, proposed once more, or ended.

Each step can be repeated by anybody, so that a kill between any two of them loses nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import optuna
from optuna.trial import FrozenTrial, TrialState

from hwprune.common.files import Table
from hwprune.records.trial import FAILED, Failure, Trial
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.study import lease
from hwprune.searching.study.attributes import DUPLICATE, HANDED_OVER, ORIGIN, RESULT, RETRY_OF
from hwprune.searching.study.backend import StudyBackend
from hwprune.searching.study.finishing import TrialFinisher


class Rescue:
    """Gives lost trials back.

    Args:
        space: turns parameters into recipes; None: trials can be read only.
        is_complete: has a trial all its parameters?
    """

    def __init__(
        self,
        backend: StudyBackend,
        finisher: TrialFinisher,
        watch: lease.Watch,
        space: SearchSpace | None,
        is_complete: Callable[[FrozenTrial], bool],
    ) -> None:
        self._backend, self._finisher, self._watch, self._space = backend, finisher, watch, space
        self._is_complete = is_complete

    def recover(self, constraints: Callable[[Trial], Mapping[str, float]]) -> int:
        """Give back what dead workers left; returns how many trials are proposed once more.

        A trial whose second worker died is a failed trial: it may be what kills them.
        """
        again = 0
        frozen_trials = self._backend.frozen()
        retried = {t.user_attrs[RETRY_OF] for t in frozen_trials if RETRY_OF in t.user_attrs and not self.is_lost(t)}
        for frozen in frozen_trials:
            if frozen.state == TrialState.RUNNING:
                if HANDED_OVER in frozen.system_attrs:
                    continue  # its worker is done with it; `claim` looks at who times it
                if self._watch.alive(frozen._trial_id, frozen.system_attrs.get(lease.LEASE)):
                    continue
                if self.end_lost(frozen, constraints):
                    continue
            elif not self.is_lost(frozen):
                continue
            of = frozen.user_attrs.get(RETRY_OF, frozen.number)
            if of in retried:
                continue
            # Without parameters (killed while they were being drawn) a sampler draws them anew.
            fixed = frozen.params or dict(frozen.system_attrs.get("fixed_params") or {})
            attributes = {RETRY_OF: of, **({ORIGIN: frozen.user_attrs[ORIGIN]} if ORIGIN in frozen.user_attrs else {})}
            with self._backend.errors():
                self._backend.study.enqueue_trial(fixed, user_attrs=attributes)
            retried.add(of)
            again += 1
        return again

    def is_lost(self, frozen: FrozenTrial) -> bool:
        """Did it end without anything being known of it?"""
        told = RESULT in frozen.system_attrs or DUPLICATE in frozen.system_attrs
        return frozen.state == TrialState.FAIL and not told

    def end_lost(self, frozen: FrozenTrial, constraints: Callable[[Trial], Mapping[str, float]]) -> bool:
        """End a dead worker's trial. True if nothing is left to do for it."""
        asked = self._backend.asked(frozen._trial_id)
        if RESULT in frozen.system_attrs:  # it died between the numbers and the word that they are there
            table = Table(frozen.system_attrs[RESULT], f"trial {frozen.number} in the study")
            trial = Trial.from_table(table)
            table.finish()
            if trial.quantised:  # complete, it would teach samplers a speed that no parameter has made
                self._finisher.add_derived(trial)
            else:
                self._finisher.tell(asked, trial, constraints(trial))
            return True
        if RETRY_OF in frozen.user_attrs and self._space is not None and self._is_complete(frozen):
            reason = "the search died twice while it evaluated this candidate"
            recipe = self._space.recipe(frozen.params)
            self._finisher.tell(asked, Trial(frozen.number, recipe, FAILED, failure=Failure("run", reason)), {})
            return True
        with self._backend.errors():
            try:
                self._backend.end(asked, TrialState.FAIL)
            except optuna.exceptions.UpdateFinishedTrialError:
                return True  # another one was quicker
        return DUPLICATE in frozen.system_attrs

    def superseded(self, asked: optuna.Trial) -> int | None:
        """The number of an earlier retry of the same trial, which another worker has enqueued; only the first counts. None:
        none."""
        of = asked.user_attrs.get(RETRY_OF)
        if of is None:
            return None
        numbers = [t.number for t in self._backend.frozen() if t.user_attrs.get(RETRY_OF) == of and not self.is_lost(t)]
        return min(numbers) if min(numbers) < asked.number else None

    def interrupt(self, asked: optuna.Trial) -> None:
        """Give a trial back: it is not finished, and is proposed again first. This is not counted as its one retry."""
        frozen = next(t for t in self._backend.frozen() if t._trial_id == asked._trial_id)
        with self._backend.errors(), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            attributes = {k: v for k, v in frozen.user_attrs.items() if k in (ORIGIN, RETRY_OF)}
            # Proposed before it is given up: a kill in between leaves two of them, and the second is a duplicate.
            self._backend.study.enqueue_trial(frozen.params, user_attrs=attributes)
            self._backend.set_attribute(asked._trial_id, DUPLICATE, asked.number)
            self._backend.end(asked, TrialState.FAIL)
