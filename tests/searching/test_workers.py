"""Several processes on one study: nothing is lost, nothing is done twice, whatever is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwprune.errors import UsageError
from hwprune.searching import search
from hwprune.searching.progress import Progress
from hwprune.searching.study.store import Store
from tests import postgres

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.alone


def start(*words, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "hwprune.cli.main", *words], cwd=ROOT, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def until_begun(run, process, limit=120):
    """Wait until the study has its first trial."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        if (run / "job.toml").exists():
            try:
                from hwprune.searching.job import Job

                store = Store(Job.read(run).storage or Store.default_storage(run), None)
                begun = bool(store.trials())
                store.close()
                if begun:
                    return
            except UsageError:
                pass
        time.sleep(0.3)
    raise AssertionError("the search did not begin")


def test_two_workers_share_a_search(tmp_path):
    """Each trial is done once, by somebody; the search confirms and the worker ends by itself."""
    run = tmp_path / "run"
    source = ["tests/workloads.py:slow", "seconds=1.5"]
    is_main = start("search", *source, "--trials", "14", "--out", str(run), "--sampler", "random", "--space", "default")
    until_begun(run, is_main)
    worker = start("worker", str(run))
    out, errors = is_main.communicate(timeout=200)
    assert is_main.returncode == 0, errors
    told, more = worker.communicate(timeout=60)
    assert worker.returncode == 0, more
    done = int(told.split("evaluated ")[1].split()[0])
    record = json.loads((run / "record.json").read_text())
    assert len(record["trials"]) == 14
    assert len({t["digest"] for t in record["trials"]}) == 14
    assert 1 <= done <= 13


def test_a_worker_on_another_device_leaves_latencies_to_those_on_the_studys(tmp_path, monkeypatch):
    """It prunes, scores and parks; the search, which is on the device, times what is parked."""
    from hwprune.latency.bench import Bench

    run = tmp_path / "run"
    is_main = start(
        "search", "tests/workloads.py:slow", "seconds=1.5", "--trials", "12", "--out", str(run), "--sampler", "random"
    )  # fmt: skip
    until_begun(run, is_main)
    identity, timed, notes = Bench.identity, [], []
    monkeypatch.setattr(Bench, "identity", lambda self: {**identity(self), "device": "another CPU"})
    pair = Bench.pair
    monkeypatch.setattr(Bench, "pair", lambda self, a, *rest: timed.append(a) or pair(self, a, *rest))

    class Notes(Progress):
        def note(self, text):
            notes.append(text)

    done = search.join(run, Notes())
    _, errors = is_main.communicate(timeout=200)
    assert is_main.returncode == 0, errors
    assert any("not the device of the study" in text for text in notes)
    assert "candidate" not in timed  # its own dense model against itself is all that it times
    assert done >= 1
    record = json.loads((run / "record.json").read_text())
    assert len(record["trials"]) == 12
    assert all(t["state"] == "measured" and t["speedup"]["value"] > 0 for t in record["trials"])
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert {t["number"] for t in record["trials"]} <= {s["trial"] for s in samples if s["stage"] == "search"}


def test_a_worker_needs_a_run_that_has_begun(tmp_path):
    with pytest.raises(UsageError, match="holds no run to work on"):
        search.join(tmp_path)


def kills(run, storage, trials, count, workers, seed=0):
    """A search with workers, of which ``count`` are killed at random moments and started anew; then resumed to the end."""
    draw = random.Random(seed)
    source = ["tests/workloads.py:slow", "seconds=0.15"]
    words = ["search", *source, "--trials", str(trials), "--out", str(run), "--space", "per-layer", "--sampler", "random"]
    is_main = start(*words, *(["--storage", storage] if storage else []))
    until_begun(run, is_main)
    crew = [start("worker", str(run), "--quiet") for _ in range(workers)]
    killed = 0
    for _ in range(count):
        time.sleep(draw.uniform(0.5, 3.0))
        victims = [p for p in crew if p.poll() is None]
        if not victims:
            break
        victim = draw.choice(victims)
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        killed += 1
        crew.remove(victim)
        crew.append(start("worker", str(run), "--quiet"))
    _, errors = is_main.communicate(timeout=280)
    for process in crew:
        process.communicate(timeout=90)
    assert is_main.returncode == 0, errors
    return killed


def check_whole(run, trials):
    record = json.loads((run / "record.json").read_text())
    assert record["finished"]
    assert len(record["trials"]) >= trials
    assert len(record["trials"]) <= trials + 4  # what several workers had begun is finished
    assert len({t["digest"] for t in record["trials"]}) == len(record["trials"])
    assert all(t["state"] in ("measured", "failed", "stopped") for t in record["trials"])
    assert all("died twice" in t["failure"]["reason"] for t in record["trials"] if t["state"] == "failed")


@pytest.mark.slow
@pytest.mark.skipif(postgres.programs() is None, reason="PostgreSQL is not installed")
@pytest.mark.timeout(600)
def test_four_workers_on_postgresql_survive_twenty_kills(tmp_path):
    with postgres.server() as storage:
        run = tmp_path / "run"
        assert kills(run, storage, 40, 20, 4) >= 15
        check_whole(run, 40)


@pytest.mark.slow  # the four workers below it are the proof; this one tells quickly what broke
@pytest.mark.skipif(postgres.programs() is None, reason="PostgreSQL is not installed")
def test_a_worker_on_postgresql_is_killed(tmp_path):
    with postgres.server() as storage:
        run = tmp_path / "run"
        kills(run, storage, 6, 1, 1)
        check_whole(run, 6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_on_a_journal_file_survive_kills(tmp_path):
    run = tmp_path / "run"
    kills(run, f"journal:{tmp_path / 'study.log'}", 20, 6, 2)
    check_whole(run, 20)
