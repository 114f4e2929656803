"""When a search ends."""

from __future__ import annotations

import json

import hwprune
from hwprune.common.files import sha256
from hwprune.latency import fingerprint
from hwprune.records import target as targets
from hwprune.searching import loop
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.time_plan import LEAST_TRIALS, TimePlan
from tests.conftest import tiny_workload
from tests.records.test_trial import measured


def recipes_of_tiny():
    """One unit of 64 channels at every multiple of what this CPU's kernels work in, by two criteria."""
    return 2 * (64 // targets.load("cpu").multiple(fingerprint.isa()) - 1)


def test_uniform_sweep_ends_when_it_is_done(tmp_path):
    result = hwprune.search(tiny_workload(), trials=40, sampler="uniform", space="structured", out=tmp_path / "run")
    assert 3 <= len(result.trials) <= recipes_of_tiny()
    assert any("uniform sweep is finished" in note for note in result.notes)
    assert {t.origin for t in result.trials} == {"uniform"}
    frame = result.to_dataframe()
    assert len(frame) == len(result.trials)
    assert {"measured"} <= set(frame["state"]) <= {"measured", "stopped"}  # on a busy machine one may be surely beaten


def test_exhausted_space_ends_the_search(tmp_path):
    result = hwprune.search(tiny_workload(), trials=40, sampler="random", space="structured", out=tmp_path / "run", max_drop=0.9)
    assert len({t.recipe.digest for t in result.trials}) == len(result.trials) == recipes_of_tiny()
    assert any("exhausted" in note for note in result.notes)
    best = result.best(max_drop=0.9)
    exported = best.export(tmp_path / "out")
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["files"]["model.onnx"] == sha256(exported / "model.onnx")


def test_warm_start_that_was_interrupted_is_completed_once(store):
    space, opened = store
    first = opened(True)
    for sparsity in (0.25, 0.5):
        first.enqueue(space.uniform(sparsity, "l1"), "uniform", again=False)
    second = opened(False)
    for sparsity in (0.25, 0.5, 0.75):
        second.enqueue(space.uniform(sparsity, "l1"), "uniform", again=False)
    assert second.waiting == 3


class Told(Progress):
    """What was told, in order."""

    def __init__(self):
        self.words = []

    def note(self, text):
        self.words.append(text)


def test_time_that_preparing_has_used_up_still_gives_a_few_trials(tmp_path):
    told = Told()
    result = hwprune.search(tiny_workload(), trials=0, time_s=1e-6, out=tmp_path / "run", progress=told)
    assert len(result.trials) == LEAST_TRIALS
    assert any("only 3 trials follow" in note for note in result.notes)
    assert told.words[0].startswith("The whole search is planned for 0:00: preparation takes at most 0:00")


def test_fewer_trials_than_that_are_all_there_are(tmp_path):
    result = hwprune.search(tiny_workload(), trials=1, time_s=1e-6, out=tmp_path / "run")
    assert len(result.trials) == 1


def test_time_ends_the_trials():
    """Of the search; a worker goes by its word."""
    plan = TimePlan(0, 1e-9, 0.0)
    work = loop.Work(Job("demo:digits", trials=0, time_s=1.0), None, None, None, None, None, Progress(), plan)
    trials = [measured(number, 0.1, 2.0) for number in range(4)]
    assert not work._finished(trials[: LEAST_TRIALS - 1])
    assert work._finished(trials[:LEAST_TRIALS]) and work._finished(trials)
    work.is_main = False
    assert not work._finished(trials)
    work.is_main, work.plan = True, TimePlan(0, 1e9, 0.0)
    assert not work._finished(trials)
