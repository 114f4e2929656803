"""Candidates that fail, and a device that is gone."""

from __future__ import annotations

import pytest

import hwprune
from hwprune.errors import RunError
from hwprune.searching.progress import Progress
from tests.conftest import tiny_workload
from tests.searching.helpers import read_csv


def test_candidates_that_crash_are_failed_trials(tmp_path, monkeypatch):
    """Every second candidate takes the measuring process down; the search goes on and says why."""
    from hwprune.latency.bench import Bench

    right, count = Bench.pair, []

    def crash(self, a, b, samples, settings):
        if a == "candidate":
            count.append(1)
            if len(count) % 2:
                self._process._process.kill()
                self._process._process.wait()
                from hwprune.errors import CandidateFailure

                raise CandidateFailure("measure", "the measuring process was killed by SIGKILL")
        return right(self, a, b, samples, settings)

    monkeypatch.setattr(Bench, "pair", crash)
    result = hwprune.search(tiny_workload(), trials=4, out=tmp_path / "run")
    states = [t.state for t in result.trials]
    assert states.count("failed") == 2
    assert states.count("measured") == 2
    reasons = [row["failure_reason"] for row in read_csv(tmp_path / "run" / "trials.csv") if row["state"] == "failed"]
    assert all("SIGKILL" in reason for reason in reasons)


def test_device_that_disappears_stops_the_search_and_loses_nothing(tmp_path, monkeypatch):
    """From the second trial on nothing runs any more: an error, not a row of failed candidates; it goes on when the device is back."""
    from hwprune.errors import CandidateFailure
    from hwprune.latency.bench import Bench

    whole, gone = Bench.load, False

    def load(self, key, path, keep=False, threads=None):
        if gone:
            raise CandidateFailure("run", "CUDA error: device lost")
        whole(self, key, path, keep=keep, threads=threads)

    class Watcher(Progress):
        def trial(self, *args):
            nonlocal gone
            gone = True

    monkeypatch.setattr(Bench, "load", load)
    run = tmp_path / "run"
    with pytest.raises(RunError, match="does not run the dense model any more .CUDA error: device lost"):
        hwprune.search(tiny_workload("top1"), trials=3, out=run, progress=Watcher())
    gone = False
    result = hwprune.search(tiny_workload("top1"), trials=3, out=run, resume=True)
    assert len(result.trials) == 3
    assert all(trial.measured for trial in result.trials)
