"""Access to a study in its storage: attributes, trials, their states. Whatever the storage raises becomes an error of hwprune."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hwprune.searching.study import lease
from hwprune.searching.study.storage import create_study, load_study, storage_errors


class StudyBackend:
    """One study.

    Args:
        storage: Optuna storage URL, or ``journal:PATH``.
        create: make the study; else it must be there.

    Raises:
        UsageError: it is there and should not be, or the other way round.
        RunError: the storage fails.
    """

    def __init__(self, storage: str, *, create: bool) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.storage = storage
        self._look: list[FrozenTrial] | None = None
        with storage_errors(storage):
            self.study = create_study(storage) if create else load_study(storage)
        self._storage: Any = self.study._storage

    def close(self) -> None:
        """Give back connections to a database."""
        backend = getattr(self._storage, "_backend", self._storage)
        if isinstance(backend, optuna.storages.RDBStorage):
            backend.remove_session()
            backend.engine.dispose()

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """What the storage raises meanwhile becomes `RunError` or `UsageError`."""
        return storage_errors(self.storage)

    def write(self, key: str, value: Any) -> None:
        """Set an attribute of the study."""
        with self.errors():
            self.study.set_user_attr(key, value)

    def read(self, key: str) -> Any:
        """An attribute of the study; None if it is not there."""
        with self.errors():
            return self.study.user_attrs.get(key)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Questions asked meanwhile are answered from one reading of the trials; nothing is changed meanwhile."""
        self._look = self.frozen()
        try:
            yield
        finally:
            self._look = None

    def frozen(self) -> list[FrozenTrial]:
        """All trials, in whatever state."""
        if self._look is not None:
            return self._look
        with self.errors():
            trials: list[FrozenTrial] = self._storage.get_all_trials(self.study._study_id, deepcopy=False)
            return trials

    def by_number(self, number: int) -> FrozenTrial:
        return next(trial for trial in self.frozen() if trial.number == number)

    def asked(self, trial_id: int) -> optuna.Trial:
        """A trial that can be written to."""
        return optuna.Trial(self.study, trial_id)

    def set_attribute(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute of a trial."""
        self._storage.set_trial_system_attr(trial_id, key, value)

    def renew(self, asked: optuna.Trial, value: dict[str, Any]) -> None:
        """Write a lease of a trial."""
        self.set_attribute(asked._trial_id, lease.LEASE, value)

    def end(self, asked: optuna.Trial, state: TrialState, values: Sequence[float] | None = None) -> None:
        """End a trial as `optuna.Study.tell` does, which hides behind warnings that it was finished by another."""
        self._storage.set_trial_state_values(asked._trial_id, state=state, values=values)

    def add_running(self, template: FrozenTrial) -> int:
        """Add a trial that nobody has proposed; its number."""
        made = self._storage.create_new_trial(self.study._study_id, template_trial=template)
        return next(int(trial.number) for trial in self.frozen() if trial._trial_id == made)
