"""What becomes of the trials of dead workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import optuna
import pytest

from hwprune.searching.study import lease
from hwprune.searching.study.store import Store
from tests.records.test_trial import measured
from tests.searching.helpers import random_sampler


@pytest.fixture
def dead(monkeypatch):
    """Leases that this process writes look like those of a process of this machine that is gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setattr(lease, "own", lambda beat=0: {"place": lease.place(), "pid": gone.pid, "started": "1", "beat": beat})


def test_a_candidate_that_kills_the_search_twice_is_a_failed_trial(store, dead):
    space, opened = store
    first = opened(True)
    first.enqueue(space.uniform(0.5, "l1"), "uniform")
    asked = first.ask(random_sampler())
    recipe = space.recipe(asked.params)
    second = opened(False)
    assert second.rescue.recover(lambda trial: {}) == 1
    again = second.ask(random_sampler())
    assert again.params == asked.params
    third = opened(False)
    assert third.rescue.recover(lambda trial: {}) == 0
    (trial,) = third.trials()
    assert trial.recipe == recipe
    assert "died twice" in trial.failure.reason
    assert third.rescue.recover(lambda trial: {}) == 0  # and that was all


def test_a_living_workers_trial_is_left_alone(store):
    _, opened = store
    asked = opened(True).ask(random_sampler())
    other = opened(False)
    assert other.rescue.recover(lambda trial: {}) == 0
    assert other.busy() == 1
    assert other.known(other.ask(random_sampler()), other._space.recipe(asked.params)) == asked.number


def test_a_worker_of_another_machine_is_dead_when_its_heartbeat_stands_still(store, monkeypatch):
    """Judged by the watcher's own clock: what the other machine takes for the time does not matter."""
    space, opened = store
    monkeypatch.setattr(lease, "own", lambda beat=0: {"place": "elsewhere", "pid": 1, "started": "1", "beat": beat})
    first = opened(True)
    asked = first.ask(random_sampler())
    now = [0.0]
    watcher = Store(first._backend.storage, space, watch=lease.Watch(60.0, lambda: now[0]))
    assert watcher.rescue.recover(lambda trial: {}) == 0
    now[0] = 50.0
    first._backend.renew(asked, lease.own(1))
    assert watcher.rescue.recover(lambda trial: {}) == 0
    now[0] = 109.0
    assert watcher.rescue.recover(lambda trial: {}) == 0
    now[0] = 111.0
    assert watcher.rescue.recover(lambda trial: {}) == 1
    # It was only slow: what it brings now is too late, and says so.
    assert not first.finisher.tell(asked, measured(asked.number, 0.1, 1.5), {})


def test_a_worker_that_hangs_loses_its_trial_at_last(store, monkeypatch):
    """Stopped or dead-locked, its process is still there; it beats no more."""
    space, opened = store
    stopped = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        os.kill(stopped.pid, signal.SIGSTOP)
        of = {"place": lease.place(), "pid": stopped.pid, "started": lease.started(stopped.pid)}
        with monkeypatch.context() as patched:
            patched.setattr(lease, "own", lambda beat=0: {**of, "beat": beat})
            opened(True).ask(random_sampler())
        now = [0.0]
        watcher = Store(opened(False)._backend.storage, space, watch=lease.Watch(clock=lambda: now[0]))
        assert watcher.busy() == 1
        now[0] = lease.HUNG_S - 1
        assert (watcher.busy(), watcher.rescue.recover(lambda trial: {})) == (1, 0)
        now[0] = lease.HUNG_S + 1
        assert (watcher.busy(), watcher.rescue.recover(lambda trial: {})) == (0, 1)
    finally:
        stopped.kill()
        stopped.wait()


def test_this_process_knows_that_it_lives():
    now = [0.0]
    watch = lease.Watch(clock=lambda: now[0])
    assert watch.alive(0, lease.own())
    now[0] = 10 * lease.HUNG_S
    assert watch.alive(0, lease.own())


def test_a_kill_between_the_numbers_and_the_word_that_they_are_there(store, dead):
    space, opened = store
    first = opened(True)
    asked = first.ask(random_sampler())
    trial = measured(asked.number, 0.25, 1.5)
    first._backend.set_attribute(asked._trial_id, "hwprune:trial", trial.to_json())
    second = opened(False)
    assert second.rescue.recover(lambda found: {"drop": found.drop - 0.1}) == 0
    (kept,) = second.trials()
    assert kept == trial
    (frozen,) = second.study.trials
    assert frozen.values == [0.25, 1.5] and frozen.state.name == "COMPLETE"


def test_a_kill_between_giving_up_and_proposing_again(store, dead):
    """A trial that ended without anything known of it is proposed again, by whoever looks first, once."""
    space, opened = store
    first = opened(True)
    asked = first.ask(random_sampler())
    first._backend.end(asked, optuna.trial.TrialState.FAIL)
    second, third = opened(False), opened(False)
    assert second.rescue.recover(lambda trial: {}) == 1
    assert third.rescue.recover(lambda trial: {}) == 0
    # Two that looked at the same moment both propose it: the later one is a duplicate.
    third.study.enqueue_trial(asked.params, user_attrs={"hwprune:retry_of": asked.number})
    one, two = third.ask(random_sampler()), third.ask(random_sampler())
    assert third.rescue.superseded(one) is None
    assert third.rescue.superseded(two) == one.number
