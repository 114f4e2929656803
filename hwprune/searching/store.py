"""The study: Optuna's storage is the truth; what hwprune knows of a trial is in its user attributes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hwprune.errors import RunError, UsageError
from hwprune.files import Table
from hwprune.measurement import Measurement
from hwprune.recipe import Recipe
from hwprune.searching import samplers
from hwprune.searching.space import SearchSpace
from hwprune.trial import FAILED, Failure, Trial

STUDY = "hwprune"
_REMEASURED = "remeasured"
_TRIAL, _DUPLICATE, _INTERRUPTED, _RETRY, _ORIGIN = "trial", "duplicate_of", "interrupted", "retry", "origin"


@contextlib.contextmanager
def _storage_errors(storage: str) -> Iterator[None]:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise RunError(f"the study's storage {storage} failed: {first}") from error


def _open(storage: str) -> Any:
    """SQLite in write-ahead mode: a commit survives the process being killed and costs a tenth of a synced one."""
    if not storage.startswith("sqlite:"):
        return storage
    from sqlalchemy import event

    opened = optuna.storages.RDBStorage(storage)

    def configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(opened.engine, "connect", configure)
    opened.engine.dispose()  # the connection that made the tables was not configured
    return opened


class Store:
    """One multi-objective study (drop down, speedup up) and the trials in it."""

    def __init__(self, storage: str, space: SearchSpace | None, sampler: str, seed: int, create: bool = False) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.storage = storage
        self._space = space
        self._sampler = sampler
        self._seed = seed
        self._told = 0
        with _storage_errors(storage):
            try:
                if create:
                    self.study = optuna.create_study(
                        storage=_open(storage), study_name=STUDY, directions=["minimize", "maximize"], load_if_exists=False
                    )
                    self.study.set_metric_names(["drop", "speedup"])
                else:
                    self.study = optuna.load_study(storage=_open(storage), study_name=STUDY)
                    self._told = sum(_TRIAL in t.user_attrs or _DUPLICATE in t.user_attrs for t in self._frozen())
            except optuna.exceptions.DuplicatedStudyError as error:
                raise UsageError(
                    f"{storage} holds a hwprune study already: go on with --resume or use another storage"
                ) from error
            except KeyError as error:
                raise UsageError(f"{storage} holds no hwprune study to resume") from error

    @staticmethod
    def default_storage(run: Path) -> str:
        return f"sqlite:///{(run / 'study.db').resolve()}"

    # -- attributes of the study -------------------------------------------------------------

    def write(self, key: str, value: Any) -> None:
        with _storage_errors(self.storage):
            self.study.set_user_attr(key, value)

    def read(self, key: str) -> Any:
        return self.study.user_attrs.get(key)

    # -- trials ------------------------------------------------------------------------------

    def trials(self) -> list[Trial]:
        """Finished trials by number, duplicates left out."""
        found = []
        newer = self.read(_REMEASURED) or {}
        for frozen in self._frozen():
            data = frozen.user_attrs.get(_TRIAL)
            if data is not None and frozen.state in (TrialState.COMPLETE, TrialState.FAIL):
                table = Table(data, f"trial {frozen.number} in {self.storage}")
                trial = Trial.from_table(table)
                table.finish()
                again = newer.get(str(frozen.number))
                found.append(trial if again is None else _overlaid(trial, again))
        return found

    def remeasured(self, number: int, speedup: Measurement, latency: Measurement) -> None:
        """Keep a newer measurement of a finished trial. Optuna's values of it stay; `trials` gives the newer ones."""
        newer = dict(self.read(_REMEASURED) or {})
        newer[str(number)] = {"speedup": speedup.to_json(), "latency": latency.to_json()}
        self.write(_REMEASURED, newer)

    def _frozen(self, states: Sequence[TrialState] | None = None) -> list[FrozenTrial]:
        with _storage_errors(self.storage):
            return self.study.get_trials(deepcopy=False, states=states)

    def enqueue(self, parameters: Mapping[str, Any], origin: str, again: bool = True) -> None:
        """Propose this before anything that a sampler proposes; ``again`` False: not if it was proposed before."""
        with _storage_errors(self.storage):
            self.study.enqueue_trial(dict(parameters), user_attrs={_ORIGIN: origin}, skip_if_exists=not again)

    @property
    def waiting(self) -> int:
        return len(self._frozen((TrialState.WAITING,)))

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """Per unit an ordered whole number; a category only where there is more than one."""
        assert self._space is not None
        found: dict[str, optuna.distributions.BaseDistribution] = {}
        for knob in self._space.knobs:
            found[f"level:{knob.unit}"] = optuna.distributions.IntDistribution(0, knob.depth)
            if len(knob.levels) > 1:
                found[f"pattern:{knob.unit}"] = optuna.distributions.CategoricalDistribution(tuple(knob.levels))
            if len(knob.methods) > 1:
                found[f"method:{knob.unit}"] = optuna.distributions.CategoricalDistribution(knob.methods)
        return found

    def ask(self) -> optuna.Trial:
        with _storage_errors(self.storage):
            self.study.sampler = samplers.make(self._sampler, self._seed, self._told)
            return self.study.ask(self.distributions())

    def origin(self, asked: optuna.Trial) -> str:
        return str(asked.user_attrs.get(_ORIGIN, self._sampler))

    def tell(self, asked: optuna.Trial, trial: Trial, constraints: Mapping[str, float]) -> None:
        """Store a finished trial; the numbers are there before its state says that it is finished."""
        with _storage_errors(self.storage):
            asked.set_user_attr(_TRIAL, trial.to_json())
            self._told += 1
            if trial.measured:
                assert trial.drop is not None and trial.speedup is not None
                for key, value in constraints.items():
                    asked.set_constraint(key, value)
                self.study.tell(asked, (trial.drop, trial.speedup.value))
            else:
                self.study.tell(asked, state=TrialState.FAIL)

    def tell_duplicate(self, asked: optuna.Trial, earlier: Trial, constraints: Mapping[str, float]) -> None:
        """The recipe was evaluated before: the sampler learns the known numbers, nothing is measured."""
        with _storage_errors(self.storage):
            asked.set_user_attr(_DUPLICATE, earlier.number)
            self._told += 1
            if earlier.measured:
                assert earlier.drop is not None and earlier.speedup is not None
                for key, value in constraints.items():
                    asked.set_constraint(key, value)
                self.study.tell(asked, (earlier.drop, earlier.speedup.value))
            else:
                self.study.tell(asked, state=TrialState.FAIL)

    def recover(self) -> int:
        """After a kill: trials that were running are proposed once more; returns how many.

        One that was running for the second time when the process died is a failed trial: it may be what kills it.
        """
        again = 0
        for frozen in self._frozen((TrialState.RUNNING,)):
            asked = optuna.Trial(self.study, frozen._trial_id)
            retried = int(frozen.user_attrs.get(_RETRY, 0))
            if retried and self._space is not None:
                reason = "the search died twice while it evaluated this candidate"
                trial = Trial(frozen.number, self._recipe(frozen), FAILED, failure=Failure("run", reason))
                self.tell(asked, trial, {})
                continue
            self.interrupt(asked, count=True)
            again += 1
        return again

    def interrupt(self, asked: optuna.Trial, count: bool) -> None:
        """Give a trial back: it is not finished, and is proposed again first. ``count``: as its one retry."""
        frozen = next(t for t in self._frozen() if t.number == asked.number)
        with _storage_errors(self.storage):
            asked.set_user_attr(_INTERRUPTED, True)
            self.study.tell(asked, state=TrialState.FAIL)
            attributes = {_ORIGIN: frozen.user_attrs.get(_ORIGIN, self._sampler)}
            if count:
                attributes[_RETRY] = 1
            self.study.enqueue_trial(frozen.params, user_attrs=attributes)

    def _recipe(self, frozen: FrozenTrial) -> Recipe:
        assert self._space is not None
        return self._space.recipe(frozen.params)


def _overlaid(trial: Trial, newer: Mapping[str, Any]) -> Trial:
    table = Table(newer, f"trial {trial.number}, measured again")
    speedup, latency = (Measurement.from_table(table.table(name)) for name in ("speedup", "latency"))
    table.finish()
    return replace(trial, speedup=speedup, latency=latency)
