"""A limit of time holds for the whole search, and what the last one took is remembered."""

from __future__ import annotations

import time

import pytest

from hwprune.searching import time_plan
from hwprune.searching.final.finalists import MOST_FINALISTS
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.time_plan import TimePlan, Times


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_trials_leave_time_for_the_final_round():
    now = time.monotonic()
    assert not TimePlan(0, 100.0, now - 10, finalist_s=1.0).over(done=20)
    assert TimePlan(0, 100.0, now - 90, finalist_s=1.0).over(done=20)  # 13 models take 13 s
    assert not TimePlan(0, 100.0, now - 90, finalist_s=1.0).over(done=3)  # 5 models take 5
    assert not TimePlan(40, 0.0, now - 1e6, finalist_s=1.0).over(done=20)  # no limit of time


def test_no_more_finalists_than_there_is_time_for():
    now = time.monotonic()
    assert TimePlan(0, 100.0, now, finalist_s=1.0).most_finalists() == MOST_FINALISTS
    assert TimePlan(0, 100.0, now - 92.5, finalist_s=1.0).most_finalists() == 6
    assert TimePlan(0, 100.0, now - 500, finalist_s=1.0).most_finalists() == time_plan.LEAST_FINALISTS
    assert TimePlan(40, 0.0, now - 500, finalist_s=1.0).most_finalists() == MOST_FINALISTS


def test_the_time_left_is_that_of_the_whole_search():
    now = time.monotonic()
    plan = TimePlan(40, 0.0, now, finalist_s=2.0)
    plan._first_trial = now - 30
    assert plan.seconds_left(done=10, evaluated=10) == pytest.approx(3.0 * 30 + 26, abs=1)
    assert TimePlan(0, 60.0, now - 20).seconds_left(5, 5) == pytest.approx(40, abs=1)
    assert TimePlan(0, 0.0, now).seconds_left(5, 5) is None


def test_what_a_search_took_is_expected_of_the_next_like_it():
    clock = iter([0.0, 1.0, 11.0, 41.0, 100.0, 100.0, 100.0]).__next__
    job = Job("demo:digits", trials=40)
    first = Times(job, Progress(), clock)
    assert not first.last()
    first.phase(time_plan.LOAD)
    first.phase(time_plan.TRIALS)
    first.phase(time_plan.FINAL)
    first.finish(finalists=4)
    known = Times(job, Progress()).last()
    assert (known[time_plan.LOAD], known[time_plan.TRIALS], known[time_plan.FINAL]) == (10.0, 30.0, 59.0)
    assert Times(job, Progress()).finalist_s(1.0) == pytest.approx(59 / 5, abs=0.01)
    assert not Times(Job("demo:digits", trials=80), Progress()).last()
    again = Times(job, Progress())
    again.phase(time_plan.FINAL)
    again.resumed()  # a part was done before
    again.finish(finalists=4)
    assert Times(job, Progress()).last() == known


def test_of_live_objects_nothing_is_remembered():
    job = Job("", trials=40)
    times = Times(job, Progress())
    times.phase(time_plan.FINAL)
    times.finish(finalists=4)
    assert not Times(job, Progress()).last() and not time_plan._place().exists()


def test_a_broken_memory_is_no_error():
    place = time_plan._place()
    place.parent.mkdir(parents=True)
    place.write_text("[1, 2")
    assert not Times(Job("demo:digits"), Progress()).last()


def test_training_and_quantising_are_steps_of_their_own():
    plain = time_plan.phases_of(Job("demo:digits"))
    both = time_plan.phases_of(Job("demo:digits", recover="distill:2", quantize="int8"))
    assert len(plain) == 6 and both == (*plain, "train the finalists", "quantise the front")
