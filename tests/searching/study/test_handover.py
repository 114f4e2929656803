"""Trials that wait for a worker on the device: who may time them, and that nobody does it twice."""

from __future__ import annotations

import subprocess
import sys

import optuna
import pytest

from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.searching.space import fitting, space_file
from hwprune.searching.study import lease
from hwprune.searching.study.store import Store
from tests.conftest import tiny_workload
from tests.searching.helpers import random_sampler


@pytest.fixture
def workers():
    """Leases of two living processes of this machine."""
    processes = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"]) for _ in range(2)]
    yield [{"host": "h", "place": lease.place(), "pid": p.pid, "started": lease.started(p.pid), "beat": 0} for p in processes]
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def waiting(tmp_path):
    """A study with one trial that was handed over by a worker that is gone, and a way to open the study."""
    space = fitting.build(space_file.load("structured"), Pruner(tiny_workload()), targets.load("cpu"), "avx2")
    url = f"sqlite:///{tmp_path / 'study.db'}"
    store = Store(url, space, create=True)
    asked = store.ask(optuna.samplers.RandomSampler(seed=0))
    store.handover.hand_over(asked, {"by": None})
    store._backend.renew(asked, {"place": lease.place(), "pid": 2**22 + 1, "started": "0", "beat": 0})
    return asked._trial_id, lambda: Store(url, space)


def claims(store, who, monkeypatch):
    monkeypatch.setattr(lease, "own", lambda beat=0: who)
    return store.handover.claim()


def test_a_claim_is_won_once_however_slow_the_storage_is(waiting, workers, monkeypatch):
    """The second reads that the trial is free, and is then so slow with its write that the first has long won."""
    trial_id, opened = waiting
    first, second = opened(), opened()
    write = second._backend.set_attribute
    won = []

    def slow_write(*arguments):
        if not won:
            won.append(claims(first, workers[0], monkeypatch))
            monkeypatch.setattr(lease, "own", lambda beat=0: workers[1])
        write(*arguments)

    monkeypatch.setattr(second._backend, "set_attribute", slow_write)
    late = claims(second, workers[1], monkeypatch)
    assert won[0] is not None and won[0][0]._trial_id == trial_id
    assert late is None
    holder = next(t for t in opened()._backend.frozen() if t._trial_id == trial_id).system_attrs[lease.LEASE]
    assert lease.same(holder, workers[0])


def test_what_a_claimant_gives_back_is_free_again(waiting, workers, monkeypatch):
    trial_id, opened = waiting
    first, second = opened(), opened()
    asked, scored = claims(first, workers[0], monkeypatch)
    assert claims(second, workers[1], monkeypatch) is None
    monkeypatch.setattr(lease, "own", lambda beat=0: workers[0])
    first.handover.hand_over(asked, {**scored, "by": workers[0]})
    assert claims(second, workers[1], monkeypatch)[0]._trial_id == trial_id


def test_a_claim_of_a_dead_worker_holds_nobody_up(waiting, workers, monkeypatch):
    trial_id, opened = waiting
    dead = {**workers[0], "pid": 2**22 + 3, "started": "1"}
    assert claims(opened(), dead, monkeypatch) is not None
    assert claims(opened(), workers[1], monkeypatch)[0]._trial_id == trial_id


def test_a_parked_trial_is_timed_however_long_its_scoring_took(store):
    """Its scorer lives, and its heartbeat has gone on since it took the trial: that is nobody who times it."""
    space, opened = store
    one = opened(True)
    asked = one.ask(random_sampler())
    others = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    try:
        scorer, timer = (
            {"place": lease.place(), "pid": other.pid, "started": lease.started(other.pid), "beat": 0} for other in others
        )
        one.handover.hand_over(asked, {"by": scorer})
        one._backend.renew(asked, {**scorer, "beat": 7})
        taken, _ = opened(False).handover.claim()
        assert taken._trial_id == asked._trial_id
        # Another living process that times it holds it, until it is gone.
        one._backend.renew(asked, {**timer, "beat": 3})
        assert opened(False).handover.claim() is None
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert opened(False).handover.claim() is not None
