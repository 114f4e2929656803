"""The study: Optuna's storage is the truth; what hwprune knows of a trial is in its attributes.

Any number of processes may work on one study. A trial belongs to the process that asked for it, as long as its lease lives (see
`lease`). One whose process died is told as failed and proposed once more; each step of that can be repeated by anybody, so
that a kill between any two of them loses nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hwprune.common.files import Table
from hwprune.records.measurement import Measurement
from hwprune.records.recipe import Recipe
from hwprune.records.trial import Trial
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.study import lease
from hwprune.searching.study.attributes import DUPLICATE, HANDED_OVER, ORIGIN, REMEASURED, RESULT
from hwprune.searching.study.backend import StudyBackend
from hwprune.searching.study.finishing import TrialFinisher
from hwprune.searching.study.handover import Handover
from hwprune.searching.study.rescue import Rescue
from hwprune.searching.study.storage import SQLITE_FILE


class Store:
    """One multi-objective study (drop down, speedup up) and the trials in it.

    Args:
        storage: Optuna storage URL, or ``journal:PATH``.
        space: turns parameters into recipes; None: trials can be read only.
        create: make the study; else it must be there.
        watch: judges other workers' leases.

    Attributes:
        finisher: writes what came of trials.
        handover: passes trials on to workers on the device.
        rescue: gives back what dead workers left.

    Raises:
        UsageError: it is there and should not be, or the other way round.
        RunError: the storage fails.
    """

    def __init__(
        self, storage: str, space: SearchSpace | None, *, create: bool = False, watch: lease.Watch | None = None
    ) -> None:
        self._backend = StudyBackend(storage, create=create)
        self._space = space
        self._watch = watch or lease.Watch()
        self._parsed: dict[int, Trial] = {}
        self._digests: dict[int, str] = {}
        self.finisher = TrialFinisher(self._backend)
        self.handover = Handover(self._backend, self._watch)
        self.rescue = Rescue(self._backend, self.finisher, self._watch, space, self._complete)

    @staticmethod
    def default_storage(run: Path) -> str:
        path = (run / "study.db").resolve()
        # In a URL what follows a question mark would not be the file's name, and % would begin an escape.
        return f"{SQLITE_FILE}{path}" if set("?#%") & set(str(path)) else f"sqlite:///{path}"

    @property
    def study(self) -> optuna.Study:
        """Optuna's own object."""
        return self._backend.study

    def close(self) -> None:
        """Give back connections to a database."""
        self._backend.close()

    def write(self, key: str, value: Any) -> None:
        """Set an attribute of the study."""
        self._backend.write(key, value)

    def read(self, key: str) -> Any:
        """An attribute of the study; None if it is not there."""
        return self._backend.read(key)

    def snapshot(self) -> contextlib.AbstractContextManager[None]:
        """Questions asked meanwhile are answered from one reading of the trials; nothing is changed meanwhile."""
        return self._backend.snapshot()

    def trials(self, *, as_searched: bool = False) -> list[Trial]:
        """Finished trials by number, duplicates left out.

        Args:
            as_searched: without the finalists' thorough compensation and training, which other trials have not had.
        """
        found = []
        newer = self._backend.read(REMEASURED) or {}
        if as_searched:
            newer = {key: {k: v for k, v in row.items() if k in ("speedup", "latency")} for key, row in newer.items()}
        for frozen in self._backend.frozen():
            trial = self._finished(frozen)
            if trial is not None and not (as_searched and not trial.searched):
                again = newer.get(str(frozen.number))
                found.append(trial if not again else _overlaid(trial, again))
        return found

    def _finished(self, frozen: FrozenTrial) -> Trial | None:
        if not frozen.state.is_finished() or RESULT not in frozen.system_attrs:
            return None
        if frozen._trial_id not in self._parsed:
            table = Table(frozen.system_attrs[RESULT], f"trial {frozen.number} in the study")
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

    def _newer(self, number: int, values: Mapping[str, Any]) -> None:
        newer = dict(self._backend.read(REMEASURED) or {})
        newer[str(number)] = {**newer.get(str(number), {}), **values}
        self._backend.write(REMEASURED, newer)

    def enqueue(self, parameters: Mapping[str, Any], origin: str, *, again: bool = True) -> None:
        """Propose this before anything that a sampler proposes; ``again`` False: not if it was proposed before."""
        with self._backend.errors():
            self._backend.study.enqueue_trial(dict(parameters), user_attrs={ORIGIN: origin}, skip_if_exists=not again)

    @property
    def waiting(self) -> int:
        return sum(frozen.state == TrialState.WAITING for frozen in self._backend.frozen())

    def busy(self) -> int:
        """Trials that other living workers are at, or that wait for being timed."""
        return sum(
            HANDED_OVER in frozen.system_attrs or self._watch.alive(frozen._trial_id, frozen.system_attrs.get(lease.LEASE))
            for frozen in self._backend.frozen()
            if frozen.state == TrialState.RUNNING
        )

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """Optuna's distribution of every parameter of the space."""
        assert self._space is not None
        return self._space.distributions()

    def ask(self, sampler: optuna.samplers.BaseSampler) -> optuna.Trial:
        """The next trial, leased by this process."""
        with self._backend.errors():
            self._backend.study.sampler = sampler
            distributions = self.distributions()
            asked = self._backend.study.ask()
            self._backend.renew(asked, lease.own())
            # Suggested one by one only after the lease is there: a kill in between leaves a trial that anybody may take over.
            for name, distribution in distributions.items():
                if isinstance(distribution, optuna.distributions.IntDistribution):
                    asked.suggest_int(name, distribution.low, distribution.high, step=distribution.step)
                elif isinstance(distribution, optuna.distributions.FloatDistribution):
                    asked.suggest_float(name, distribution.low, distribution.high)
                elif isinstance(distribution, optuna.distributions.CategoricalDistribution):
                    asked.suggest_categorical(name, distribution.choices)
            return asked

    def holding(self, asked: optuna.Trial) -> contextlib.AbstractContextManager[None]:
        """Keep the lease alive meanwhile."""
        return lease.beating(partial(self._backend.renew, asked))

    def origin(self, asked: optuna.Trial, sampler: str) -> str:
        return str(asked.user_attrs.get(ORIGIN, sampler))

    def known(self, asked: optuna.Trial, recipe: Recipe) -> Trial | int | None:
        """An evaluated trial with the same recipe, or the number of one that another worker is at; None: it is new.

        A retry of a trial counts as new once: of several the one with the lowest number.
        """
        wanted = recipe.digest
        for frozen in self._backend.frozen():
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

    def ahead(self, asked: optuna.Trial) -> int:
        """Trials that are finished, or that a living worker has asked for before this one."""
        found = 0
        for frozen in self._backend.frozen():
            if frozen.state == TrialState.RUNNING and frozen.number < asked.number:
                lease_of = frozen.system_attrs.get(lease.LEASE)
                found += HANDED_OVER in frozen.system_attrs or self._watch.alive(frozen._trial_id, lease_of)
            elif frozen.state.is_finished() and RESULT in frozen.system_attrs and DUPLICATE not in frozen.system_attrs:
                found += 1  # a trained candidate is the duplicate of what was trained
        return found

    def _complete(self, frozen: FrozenTrial) -> bool:
        return self._space is not None and self._space.complete(frozen.params)


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
