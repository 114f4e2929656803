"""Trials in every storage."""

from __future__ import annotations

import optuna
import pytest

from hwprune.errors import UsageError
from hwprune.records.recipe import Recipe
from hwprune.records.trial import Failure, Trial
from hwprune.searching.study.store import Store
from tests.records.test_trial import measured
from tests.searching.helpers import random_sampler


@pytest.mark.parametrize("url", ["sqlite", "journal"])
def test_every_storage_keeps_trials(tmp_path, store, url):
    space, _ = store
    storage = f"sqlite:///{tmp_path / 'a.db'}" if url == "sqlite" else f"journal:{tmp_path / 'a.log'}"
    one = Store(storage, space, create=True)
    asked = one.ask(random_sampler())
    one.finisher.tell(asked, measured(asked.number, 0.1, 1.5), {"drop": 0.2})
    with pytest.raises(UsageError, match="holds a hwprune study already"):
        Store(storage, space, create=True)
    assert [t.number for t in Store(storage, space).trials()] == [asked.number]


def test_a_study_of_somebody_else_stays_and_a_start_that_died_is_replaced(tmp_path, store):
    space, _ = store
    storage = f"sqlite:///{tmp_path / 'mine.db'}"
    theirs = optuna.create_study(storage=storage, study_name="theirs")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    Store(storage, space, create=True)
    again = Store(storage, space, create=True)  # the first never got to a trial
    again.write("started", True)
    with pytest.raises(UsageError, match="holds a hwprune study already"):
        Store(storage, space, create=True)
    assert len(optuna.load_study(storage=storage, study_name="theirs").trials) == 2


def test_storage_faults_are_told(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        Store(f"journal:{tmp_path / 'missing' / 'a.log'}", None, create=True)
    with pytest.raises(UsageError, match="driver that is not installed"):
        Store("mysql+nodriver://localhost/x", None, create=True)
    with pytest.raises(UsageError, match="holds no hwprune study"):
        Store(f"sqlite:///{tmp_path / 'a.db'}", None)


def test_failed_trials_keep_their_reason(store):
    _, opened = store
    one = opened(True)
    asked = one.ask(random_sampler())
    one.finisher.tell(asked, Trial(asked.number, Recipe(), "failed", failure=Failure("run", "crashed")), {})
    assert opened(False).trials()[0].failure == Failure("run", "crashed")
