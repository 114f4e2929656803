"""The study: Optuna's storage is the truth; what hwprune knows of a trial is in its attributes.

Any number of processes may work on one study. A trial belongs to the process that asked for it, as long as its lease lives (see
`lease`). One whose process died is told as failed and proposed once more; each step of that can be repeated by anybody, so
that a kill between any two of them loses nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hwprune.common.files import Table
from hwprune.records.measurement import Measurement
from hwprune.records.recipe import Recipe
from hwprune.records.trial import FAILED, STOPPED, Failure, Trial
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.study import lease
from hwprune.searching.study.attributes import (
    DIVERGENCE,
    DIVERGENCE_WEIGHT,
    DUPLICATE,
    FILE,
    HANDED_OVER,
    ORIGIN,
    REMEASURED,
    RESULT,
    RETRY_OF,
    SAVED,
)
from hwprune.searching.study.storage import create_study, load_study, storage_errors

CLAIM_S = 0.1
"""Of two workers that claim a trial at the same moment, the one that wrote last sees itself after so long."""


class Store:
    """One multi-objective study (drop down, speedup up) and the trials in it.

    Args:
        storage: Optuna storage URL, or ``journal:PATH``.
        space: turns parameters into recipes; None: trials can be read only.
        create: make the study; else it must be there.
        watch: judges other workers' leases.

    Raises:
        UsageError: it is there and should not be, or the other way round.
        RunError: the storage fails.
    """

    def __init__(self, storage: str, space: SearchSpace | None, create: bool = False, watch: lease.Watch | None = None) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.storage = storage
        self._space = space
        self._watch = watch or lease.Watch()
        self._parsed: dict[int, Trial] = {}
        self._look: list[FrozenTrial] | None = None
        self._digests: dict[int, str] = {}
        with storage_errors(storage):
            self.study = create_study(storage) if create else load_study(storage)
        self._backend: Any = self.study._storage

    @staticmethod
    def default_storage(run: Path) -> str:
        return f"sqlite:///{(run / 'study.db').resolve()}"

    def close(self) -> None:
        """Give back connections to a database."""
        backend = getattr(self._backend, "_backend", self._backend)
        if isinstance(backend, optuna.storages.RDBStorage):
            backend.remove_session()
            backend.engine.dispose()

    # -- attributes of the study -------------------------------------------------------------

    def write(self, key: str, value: Any) -> None:
        with storage_errors(self.storage):
            self.study.set_user_attr(key, value)

    def read(self, key: str) -> Any:
        with storage_errors(self.storage):
            return self.study.user_attrs.get(key)

    # -- trials ------------------------------------------------------------------------------

    def trials(self, as_searched: bool = False) -> list[Trial]:
        """Finished trials by number, duplicates left out.

        Args:
            as_searched: without the finalists' thorough compensation and training, which other trials have not had.
        """
        found = []
        newer = self.read(REMEASURED) or {}
        if as_searched:
            newer = {key: {k: v for k, v in row.items() if k in ("speedup", "latency")} for key, row in newer.items()}
        for frozen in self._frozen():
            trial = self._finished(frozen)
            if trial is not None and not (as_searched and not trial.searched):
                again = newer.get(str(frozen.number))
                found.append(trial if not again else _overlaid(trial, again))
        return found

    def _finished(self, frozen: FrozenTrial) -> Trial | None:
        if not frozen.state.is_finished() or RESULT not in frozen.system_attrs:
            return None
        if frozen._trial_id not in self._parsed:
            table = Table(frozen.system_attrs[RESULT], f"trial {frozen.number} in {self.storage}")
            trial = Trial.from_table(table)
            table.finish()
            self._parsed[frozen._trial_id] = trial
        return self._parsed[frozen._trial_id]

    def save_remeasured(self, number: int, speedup: Measurement, latency: Measurement) -> None:
        """Keep a newer measurement of a finished trial. Optuna's values of it stay; `trials` gives the newer ones."""
        self._newer(number, {"speedup": speedup.to_json(), "latency": latency.to_json()})

    def save_refined(self, trial: Trial) -> None:
        """Keep a finished trial's more thorough compensation, and what it was before."""
        assert trial.metric is not None and trial.divergence is not None
        self._newer(
            trial.number,
            {
                "compensation": trial.recipe.compensation, "metric": trial.metric.to_json(), "drop": trial.drop,
                "divergence": trial.divergence.to_json(), "size_bytes": trial.size_bytes,
            },
        )  # fmt: skip

    def number_for(self, of: int, origin: str) -> int:
        """The number of a new trial that trains another one's candidate; `add_trained` finishes it.

        Samplers learn nothing from it: it has the other one's parameters.
        """
        frozen = next(t for t in self._frozen() if t.number == of)
        with storage_errors(self.storage):
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING, params=frozen.params, distributions=frozen.distributions,
                user_attrs={ORIGIN: origin}, system_attrs={DUPLICATE: of, lease.LEASE: lease.own()},
            )  # fmt: skip
            made = self._backend.create_new_trial(self.study._study_id, template_trial=template)
        return next(int(t.number) for t in self._frozen() if t._trial_id == made)

    def add_trained(self, trial: Trial, constraints: Mapping[str, float]) -> None:
        """Finish a trial of `number_for`."""
        frozen = next(t for t in self._frozen() if t.number == trial.number)
        self.tell(optuna.Trial(self.study, frozen._trial_id), trial, constraints)

    def number_of_derived(self, origin: str) -> int:
        """The number of a new trial that is made of another one, or of the dense model; `add_derived` finishes it.

        It has no parameters, and ends as failed in Optuna's eyes, with its numbers in its attributes: no choice of the search has
        made its speedup, and samplers that read the study must not believe that one has.
        """
        with storage_errors(self.storage):
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING, user_attrs={ORIGIN: origin}, system_attrs={DUPLICATE: -1, lease.LEASE: lease.own()}
            )
            made = self._backend.create_new_trial(self.study._study_id, template_trial=template)
        return next(int(t.number) for t in self._frozen() if t._trial_id == made)

    def add_derived(self, trial: Trial) -> None:
        """Finish a trial of `number_of_derived`."""
        frozen = next(t for t in self._frozen() if t.number == trial.number)
        asked = optuna.Trial(self.study, frozen._trial_id)
        with storage_errors(self.storage):
            self._backend.set_trial_system_attr(asked._trial_id, RESULT, trial.to_json())
            for key, value in _readable(trial).items():
                asked.set_user_attr(key, value)
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._end(asked, TrialState.FAIL)

    def _newer(self, number: int, values: Mapping[str, Any]) -> None:
        newer = dict(self.read(REMEASURED) or {})
        newer[str(number)] = {**newer.get(str(number), {}), **values}
        self.write(REMEASURED, newer)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Questions asked meanwhile are answered from one reading of the trials; nothing is changed meanwhile."""
        self._look = self._frozen()
        try:
            yield
        finally:
            self._look = None

    def _frozen(self) -> list[FrozenTrial]:
        if self._look is not None:
            return self._look
        with storage_errors(self.storage):
            found: list[FrozenTrial] = self._backend.get_all_trials(self.study._study_id, deepcopy=False)
            return found

    def enqueue(self, parameters: Mapping[str, Any], origin: str, again: bool = True) -> None:
        """Propose this before anything that a sampler proposes; ``again`` False: not if it was proposed before."""
        with storage_errors(self.storage):
            self.study.enqueue_trial(dict(parameters), user_attrs={ORIGIN: origin}, skip_if_exists=not again)

    @property
    def waiting(self) -> int:
        return sum(frozen.state == TrialState.WAITING for frozen in self._frozen())

    def busy(self) -> int:
        """Trials that other living workers are at, or that wait for being timed."""
        return sum(
            HANDED_OVER in frozen.system_attrs or self._watch.alive(frozen._trial_id, frozen.system_attrs.get(lease.LEASE))
            for frozen in self._frozen()
            if frozen.state == TrialState.RUNNING
        )

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """Per unit an ordered whole number; a category only where there is more than one."""
        assert self._space is not None
        found: dict[str, optuna.distributions.BaseDistribution] = {}
        for unit_space in self._space.units:
            found[f"level:{unit_space.unit}"] = optuna.distributions.IntDistribution(0, unit_space.depth)
            if len(unit_space.levels) > 1:
                found[f"pattern:{unit_space.unit}"] = optuna.distributions.CategoricalDistribution(tuple(unit_space.levels))
            if len(unit_space.methods) > 1:
                found[f"method:{unit_space.unit}"] = optuna.distributions.CategoricalDistribution(unit_space.methods)
        return found

    def ask(self, sampler: optuna.samplers.BaseSampler) -> optuna.Trial:
        """The next trial, leased by this process."""
        with storage_errors(self.storage):
            self.study.sampler = sampler
            distributions = self.distributions()
            asked = self.study.ask()
            self.renew(asked, lease.own())
            # Suggested one by one only after the lease is there: a kill in between leaves a trial that anybody may take over.
            for name, distribution in distributions.items():
                if isinstance(distribution, optuna.distributions.IntDistribution):
                    asked.suggest_int(name, distribution.low, distribution.high)
                elif isinstance(distribution, optuna.distributions.CategoricalDistribution):
                    asked.suggest_categorical(name, distribution.choices)
            return asked

    def renew(self, asked: optuna.Trial, value: dict[str, Any]) -> None:
        self._backend.set_trial_system_attr(asked._trial_id, lease.LEASE, value)

    def holding(self, asked: optuna.Trial) -> contextlib.AbstractContextManager[None]:
        """Keep the lease alive meanwhile."""
        return lease.beating(partial(self.renew, asked))

    def origin(self, asked: optuna.Trial, sampler: str) -> str:
        return str(asked.user_attrs.get(ORIGIN, sampler))

    def known(self, asked: optuna.Trial, recipe: Recipe) -> Trial | int | None:
        """An evaluated trial with the same recipe, or the number of one that another worker is at; None: it is new.

        A retry of a trial counts as new once: of several the one with the lowest number.
        """
        wanted = recipe.digest
        for frozen in self._frozen():
            if frozen._trial_id == asked._trial_id or frozen.state == TrialState.WAITING:
                continue
            finished = self._finished(frozen)
            if finished is not None:
                if not finished.quantised and self._digest(frozen, finished.recipe) == wanted:
                    return finished
            elif frozen.state == TrialState.RUNNING and frozen.number < asked.number and self._complete(frozen):
                assert self._space is not None
                if self._digest(frozen, self._space.recipe(frozen.params)) == wanted:
                    return int(frozen.number)
        return None

    def _digest(self, frozen: FrozenTrial, recipe: Recipe) -> str:
        """The recipe's digest, computed once a trial."""
        if frozen._trial_id not in self._digests:
            self._digests[frozen._trial_id] = recipe.digest
        return self._digests[frozen._trial_id]

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
            with storage_errors(self.storage):
                self._backend.set_trial_system_attr(asked._trial_id, RESULT, trial.to_json())
                for key, value in _readable(trial).items():
                    asked.set_user_attr(key, value)
                if trial.divergence is not None:
                    asked.set_user_attr(DIVERGENCE_WEIGHT, share)
                if dense_bytes is not None and trial.size_bytes is not None:
                    asked.set_user_attr(SAVED + FILE, dense_bytes - trial.size_bytes)
                if trial.measured:
                    assert trial.drop is not None and trial.speedup is not None
                    for key, value in constraints.items():
                        asked.set_constraint(key, value)
                    self._end(asked, TrialState.COMPLETE, (trial.drop, trial.speedup.value))
                else:
                    self._end(asked, TrialState.PRUNED if trial.state == STOPPED else TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return True

    def _end(self, asked: optuna.Trial, state: TrialState, values: Sequence[float] | None = None) -> None:
        """As `Study.tell`, which hides that a trial was finished by another behind warnings."""
        self._backend.set_trial_state_values(asked._trial_id, state=state, values=values)

    def tell_duplicate(self, asked: optuna.Trial, earlier: Trial | int, constraints: Mapping[str, float]) -> None:
        """The recipe was evaluated before: the sampler learns the known numbers, nothing is measured."""
        number = earlier if isinstance(earlier, int) else earlier.number
        with storage_errors(self.storage), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._backend.set_trial_system_attr(asked._trial_id, DUPLICATE, number)
            asked.set_user_attr("duplicate of", number)
            if isinstance(earlier, Trial) and earlier.measured:
                assert earlier.drop is not None and earlier.speedup is not None
                if earlier.divergence is not None:
                    asked.set_user_attr(DIVERGENCE, earlier.divergence.value)
                for key, value in constraints.items():
                    asked.set_constraint(key, value)
                self._end(asked, TrialState.COMPLETE, (earlier.drop, earlier.speedup.value))
            else:
                self._end(asked, TrialState.FAIL)

    # -- trials that only a device can finish ---------------------------------------------------

    def hand_over(self, asked: optuna.Trial, scored: dict[str, Any]) -> None:
        """Everything but the latency is known; a worker on the device goes on."""
        with storage_errors(self.storage):
            self._backend.set_trial_system_attr(asked._trial_id, HANDED_OVER, scored)

    def claim(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """A trial that waits for its latency, now leased by this process."""
        for frozen in self._frozen():
            if frozen.state != TrialState.RUNNING or HANDED_OVER not in frozen.system_attrs:
                continue
            scored = frozen.system_attrs[HANDED_OVER]
            holder = frozen.system_attrs.get(lease.LEASE)
            mine = lease.own()
            by_other = not lease.same(scored.get("by"), holder) and not lease.same(mine, holder)
            if by_other and self._watch.alive(frozen._trial_id, holder):
                continue  # another one on the device is timing it
            asked = optuna.Trial(self.study, frozen._trial_id)
            with storage_errors(self.storage):
                self.renew(asked, mine)
            time.sleep(CLAIM_S)
            now = next(t for t in self._frozen() if t._trial_id == frozen._trial_id)
            if now.state == TrialState.RUNNING and lease.same(mine, now.system_attrs.get(lease.LEASE)):
                return asked, scored  # else another one has claimed it in the same moment
        return None

    # -- what died -------------------------------------------------------------------------------

    def recover(self, constraints: Callable[[Trial], Mapping[str, float]]) -> int:
        """Give back what dead workers left; returns how many trials are proposed once more.

        A trial whose second worker died is a failed trial: it may be what kills them.
        """
        again = 0
        frozen_trials = self._frozen()
        retried = {t.user_attrs[RETRY_OF] for t in frozen_trials if RETRY_OF in t.user_attrs and not self._lost(t)}
        for frozen in frozen_trials:
            if frozen.state == TrialState.RUNNING:
                if HANDED_OVER in frozen.system_attrs:
                    continue  # its worker is done with it; `claim` looks at who times it
                if self._watch.alive(frozen._trial_id, frozen.system_attrs.get(lease.LEASE)):
                    continue
                if self.end_lost(frozen, constraints):
                    continue
            elif not self._lost(frozen):
                continue
            of = frozen.user_attrs.get(RETRY_OF, frozen.number)
            if of in retried:
                continue
            # Without parameters (killed while they were being drawn) a sampler draws them anew.
            fixed = frozen.params or dict(frozen.system_attrs.get("fixed_params") or {})
            attributes = {RETRY_OF: of, **({ORIGIN: frozen.user_attrs[ORIGIN]} if ORIGIN in frozen.user_attrs else {})}
            with storage_errors(self.storage):
                self.study.enqueue_trial(fixed, user_attrs=attributes)
            retried.add(of)
            again += 1
        return again

    def _lost(self, frozen: FrozenTrial) -> bool:
        """Did it end without anything being known of it?"""
        told = RESULT in frozen.system_attrs or DUPLICATE in frozen.system_attrs
        return frozen.state == TrialState.FAIL and not told

    def end_lost(self, frozen: FrozenTrial, constraints: Callable[[Trial], Mapping[str, float]]) -> bool:
        """End a dead worker's trial. True if nothing is left to do for it."""
        asked = optuna.Trial(self.study, frozen._trial_id)
        if RESULT in frozen.system_attrs:  # it died between the numbers and the word that they are there
            table = Table(frozen.system_attrs[RESULT], f"trial {frozen.number} in {self.storage}")
            trial = Trial.from_table(table)
            table.finish()
            if trial.quantised:  # complete, it would teach samplers a speed that no parameter has made
                self.add_derived(trial)
            else:
                self.tell(asked, trial, constraints(trial))
            return True
        if RETRY_OF in frozen.user_attrs and self._space is not None and self._complete(frozen):
            reason = "the search died twice while it evaluated this candidate"
            recipe = self._space.recipe(frozen.params)
            self.tell(asked, Trial(frozen.number, recipe, FAILED, failure=Failure("run", reason)), {})
            return True
        with storage_errors(self.storage):
            try:
                self._end(asked, TrialState.FAIL)
            except optuna.exceptions.UpdateFinishedTrialError:
                return True  # another one was quicker
        return DUPLICATE in frozen.system_attrs

    def superseded(self, asked: optuna.Trial) -> int | None:
        """Of several retries of one trial, which two workers may both have enqueued, only the first counts: its number."""
        of = asked.user_attrs.get(RETRY_OF)
        if of is None:
            return None
        numbers = [t.number for t in self._frozen() if t.user_attrs.get(RETRY_OF) == of and not self._lost(t)]
        return min(numbers) if min(numbers) < asked.number else None

    def ahead(self, asked: optuna.Trial) -> int:
        """Trials that are finished, or that a living worker has asked for before this one."""
        found = 0
        for frozen in self._frozen():
            if frozen.state == TrialState.RUNNING and frozen.number < asked.number:
                lease_of = frozen.system_attrs.get(lease.LEASE)
                found += HANDED_OVER in frozen.system_attrs or self._watch.alive(frozen._trial_id, lease_of)
            elif frozen.state.is_finished() and RESULT in frozen.system_attrs and DUPLICATE not in frozen.system_attrs:
                found += 1  # a trained candidate is the duplicate of what was trained
        return found

    def _complete(self, frozen: FrozenTrial) -> bool:
        return len(frozen.params) >= len(self.distributions())

    def interrupt(self, asked: optuna.Trial) -> None:
        """Give a trial back: it is not finished, and is proposed again first. This is not counted as its one retry."""
        frozen = next(t for t in self._frozen() if t._trial_id == asked._trial_id)
        with storage_errors(self.storage), contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            attributes = {k: v for k, v in frozen.user_attrs.items() if k in (ORIGIN, RETRY_OF)}
            # Proposed before it is given up: a kill in between leaves two of them, and the second is a duplicate.
            self.study.enqueue_trial(frozen.params, user_attrs=attributes)
            self._backend.set_trial_system_attr(asked._trial_id, DUPLICATE, asked.number)
            self._end(asked, TrialState.FAIL)


def _readable(trial: Trial) -> dict[str, Any]:
    """What a dashboard shows in a column each."""
    found: dict[str, Any] = {"state": trial.state, "recipe": trial.recipe.digest}
    if trial.divergence is not None:
        found[DIVERGENCE] = trial.divergence.value
    if trial.metric is not None:
        found["metric"] = trial.metric.value
    if trial.latency is not None:
        found["latency_ms"] = 1000 * trial.latency.value
    if trial.speedup is not None:
        half = (trial.speedup.ci_high - trial.speedup.ci_low) / 2
        found["ratio_sd"] = half / 1.96 / trial.speedup.value**2
    if trial.size_bytes is not None:
        found["size_mb"] = trial.size_bytes / 1e6
    if trial.failure is not None:
        found["reason"] = f"{trial.failure.stage}: {trial.failure.reason}"
    return found


def _overlaid(trial: Trial, newer: Mapping[str, Any]) -> Trial:
    table = Table(newer, f"trial {trial.number}, measured again")
    changes: dict[str, Any] = {}
    for name in ("speedup", "latency", "metric", "divergence"):
        if name in newer:
            changes[name] = Measurement.from_table(table.table(name))
    if "compensation" in newer:
        changes["recipe"] = Recipe(trial.recipe.choices, table.text("compensation"))
        changes["drop"] = table.number("drop")
        changes["size_bytes"] = table.integer("size_bytes")
    table.finish()
    return replace(trial, **changes)
