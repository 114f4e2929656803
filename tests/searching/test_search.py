"""A whole search on a tiny model: what it writes, and that nothing is lost or done twice."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch

import hwprune
from hwprune.common.files import sha256
from hwprune.errors import RunError, UsageError, WorkloadError
from hwprune.latency import fingerprint
from hwprune.records import target as targets
from hwprune.records.recipe import Recipe
from hwprune.records.trial import Failure, Trial
from hwprune.searching.constraints import Constraints
from hwprune.searching.final import finalists
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.sampling import samplers
from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.problem import AllocationProblem, Choice, Item
from hwprune.searching.space import fitting, space_file
from hwprune.searching.study import lease
from hwprune.searching.study.store import Store
from tests.conftest import tiny_workload
from tests.test_values import measured

ROOT = Path(__file__).resolve().parents[2]


def read_csv(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def cli(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "hwprune.cli.main", *arguments],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, timeout=250, check=False,
    )  # fmt: skip


def test_run_directory(finished_run):
    run = finished_run
    for name in (
        "job.toml",
        "study.db",
        "record.json",
        "trials.csv",
        "front.csv",
        "front.png",
        "report.html",
        "baseline/model.onnx",
    ):
        assert (run / name).is_file(), name
    record = json.loads((run / "record.json").read_text())
    rows = read_csv(run / "front.csv")
    assert list(rows[0]) == [
        "trial",
        "metric",
        "metric_ci_low",
        "metric_ci_high",
        "drop",
        "latency_s",
        "speedup",
        "speedup_ci_low",
        "speedup_ci_high",
        "params",
        "macs",
        "size_bytes",
        "clock",
        "latency_source",
        "model",
        "recipe",
        "verdict",
        "loaded_bytes",
        "peak_bytes",
        "joules",
        "recovery",
        "trained_from",
        "train_seconds",
        "drop_before_training",
        "precision",
        "quantised_from",
    ]
    assert rows[0]["trial"] == "dense"
    assert float(rows[0]["metric"]) == 1.0  # its own labels
    for row in rows:
        assert float(row["speedup_ci_low"]) <= float(row["speedup"]) <= float(row["speedup_ci_high"])
        assert row["latency_source"] == "measured"
        assert (run / row["model"]).is_file()
    for row in rows[1:]:
        assert float(row["latency_s"]) * float(row["speedup"]) == pytest.approx(
            float(rows[0]["latency_s"]) * float(rows[0]["speedup"]), rel=1e-6
        )
        assert {p.name for p in (run / row["model"]).parent.iterdir()} == {"model.onnx", "recipe.json", "model.safetensors"}
    assert len(record["trials"]) == len(read_csv(run / "trials.csv")) == 5
    assert len({t["digest"] for t in record["trials"]}) == 5
    assert record["finished"]
    kept = {p.name for p in (run / "candidates").iterdir()} if (run / "candidates").is_dir() else set()
    assert kept == {row["trial"] for row in rows[1:]}


def test_speedups_of_the_front_rise_with_the_drop(finished_run):
    rows = read_csv(finished_run / "front.csv")[1:]
    drops, speedups = [float(r["drop"]) for r in rows], [float(r["speedup"]) for r in rows]
    assert drops == sorted(drops)
    assert speedups == sorted(speedups)
    assert all(s > 1 for s in speedups)


def test_used_out_is_refused(finished_run):
    with pytest.raises(UsageError, match="holds a run already"):
        hwprune.search(tiny_workload("top1"), trials=2, out=finished_run)


def test_resume_of_another_model_is_refused(finished_run):
    workload = tiny_workload("top1")
    with torch.no_grad():
        workload.model.fc.weight.add_(1)
    with pytest.raises(UsageError, match="another model"):
        hwprune.search(workload, trials=6, out=finished_run, seed=3, resume=True)


@pytest.mark.slow
def test_kill_dash_nine_loses_and_repeats_nothing(tmp_path):
    """SIGKILL in the middle of the fourth candidate; the resumed search has all trials once, the killed one included."""
    out, counter = tmp_path / "run", tmp_path / "reads"
    # The validation data are read twice for the dense model, then once in each trial.
    source = ["tests/workloads.py:killed", f"counter={counter}", "reads=6"]
    first = cli("search", *source, "--trials", "6", "--seed", "1", "--out", str(out), "--database", str(tmp_path / "database"))
    assert first.returncode == -9
    before = json.loads(json.dumps([t.to_json() for t in Store(Store.default_storage(out), None).trials()]))
    assert len(before) == 3
    second = cli("search", "--resume", "--out", str(out))
    assert second.returncode == 0, second.stderr
    record = json.loads((out / "record.json").read_text())
    # Finalists are compensated again at the end; what the search measured of them stays.
    for now, then in zip(record["trials"], before, strict=False):
        for key in ("number", "origin", "speedup", "latency", "params", "seconds"):
            assert now[key] == then[key]
        assert now["recipe"]["choices"] == then["recipe"]["choices"]
    assert len(record["trials"]) == 6
    assert len({t["digest"] for t in record["trials"]}) == 6
    assert "1 trial(s) were interrupted" in second.stderr


@pytest.fixture
def store(tmp_path):
    from hwprune.pruning.pruner import Pruner

    space = fitting.build(space_file.load("structured"), Pruner(tiny_workload()), targets.load("cpu"), "avx512")

    def opened(create):
        return Store(f"sqlite:///{tmp_path / 'study.db'}", space, create)

    return space, opened


def random_sampler():
    return samplers.make(
        "random", 0, samplers.SamplerContext(Posterior(AllocationProblem([Item("a", (Choice({"a": 0}, 0, 0),))])))
    )


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
    assert third.recover(lambda trial: {}) == 0
    (trial,) = third.trials()
    assert trial.recipe == recipe
    assert "died twice" in trial.failure.reason
    assert third.recover(lambda trial: {}) == 0  # and that was all


def test_a_living_workers_trial_is_left_alone(store):
    _, opened = store
    asked = opened(True).ask(random_sampler())
    other = opened(False)
    assert other.recover(lambda trial: {}) == 0
    assert other.busy() == 1
    assert other.known(other.ask(random_sampler()), other._space.recipe(asked.params)) == asked.number


def test_a_worker_of_another_machine_is_dead_when_its_heartbeat_stands_still(store, monkeypatch):
    """Judged by the watcher's own clock: what the other machine takes for the time does not matter."""
    space, opened = store
    monkeypatch.setattr(lease, "own", lambda beat=0: {"place": "elsewhere", "pid": 1, "started": "1", "beat": beat})
    first = opened(True)
    asked = first.ask(random_sampler())
    now = [0.0]
    watcher = Store(first.storage, space, watch=lease.Watch(60.0, lambda: now[0]))
    assert watcher.recover(lambda trial: {}) == 0
    now[0] = 50.0
    first.renew(asked, lease.own(1))
    assert watcher.recover(lambda trial: {}) == 0
    now[0] = 109.0
    assert watcher.recover(lambda trial: {}) == 0
    now[0] = 111.0
    assert watcher.recover(lambda trial: {}) == 1
    # It was only slow: what it brings now is too late, and says so.
    assert not first.finisher.tell(asked, measured(asked.number, 0.1, 1.5), {})


def test_a_kill_between_the_numbers_and_the_word_that_they_are_there(store, dead):
    space, opened = store
    first = opened(True)
    asked = first.ask(random_sampler())
    trial = measured(asked.number, 0.25, 1.5)
    first._backend.set_trial_system_attr(asked._trial_id, "hwprune:trial", trial.to_json())
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
    first._end(asked, optuna.trial.TrialState.FAIL)
    second, third = opened(False), opened(False)
    assert second.rescue.recover(lambda trial: {}) == 1
    assert third.recover(lambda trial: {}) == 0
    # Two that looked at the same moment both propose it: the later one is a duplicate.
    third.study.enqueue_trial(asked.params, user_attrs={"hwprune:retry_of": asked.number})
    one, two = third.ask(random_sampler()), third.ask(random_sampler())
    assert third.superseded(one) is None
    assert third.superseded(two) == one.number


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
        one.renew(asked, {**scorer, "beat": 7})
        taken, _ = opened(False).handover.claim()
        assert taken._trial_id == asked._trial_id
        # Another living process that times it holds it, until it is gone.
        one.renew(asked, {**timer, "beat": 3})
        assert opened(False).handover.claim() is None
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert opened(False).handover.claim() is not None


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


def context(store_):
    from tests.searching.test_knapsack import items_for

    return samplers.SamplerContext(Posterior(AllocationProblem(items_for(store_))), trials=12, space=store_.distributions())


@pytest.mark.parametrize("name", ["tpe", "knapsack", "nsga2"])
def test_same_seed_same_proposals_with_or_without_a_restart(store, tmp_path, name):
    _, opened = store

    def proposals(target, count, start):
        sampler = samplers.make(name, 0, context(target))
        found = []
        for number in range(start, start + count):
            asked = target.ask(sampler)
            found.append(asked.params)
            target.finisher.tell(asked, measured(asked.number, 0.01 * number, 1 + 0.1 * number), {})
        return found

    whole = proposals(opened(True), 12, 0)
    (tmp_path / "study.db").unlink()
    for extra in tmp_path.glob("study.db-*"):
        extra.unlink()
    halves = proposals(opened(True), 6, 0)
    halves += proposals(opened(False), 6, 6)
    assert halves == whole


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_proposes_within_the_space(name, tmp_path, store):
    space, _ = store
    one = Store(f"sqlite:///{tmp_path / 'other.db'}", space, create=True)
    sampler = samplers.make(name, 0, context(one))
    for number in range(10):
        asked = one.ask(sampler)
        assert 0 <= asked.params["level:conv1.weight:0"] <= 3
        one.finisher.tell(asked, measured(asked.number, 0.01 * number, 1.0 + number), {"drop": -1.0})
        stopped = one.ask(sampler)
        one.finisher.tell(stopped, Trial(stopped.number, Recipe(), "stopped", failure=Failure("screen", "beaten")), {})


def test_failed_trials_keep_their_reason(store):
    _, opened = store
    one = opened(True)
    asked = one.ask(random_sampler())
    one.finisher.tell(asked, Trial(asked.number, Recipe(), "failed", failure=Failure("run", "crashed")), {})
    assert opened(False).trials()[0].failure == Failure("run", "crashed")


def test_finalists_are_the_front_then_what_is_behind_it():
    trials = [
        measured(i, drop, speed) for i, (drop, speed) in enumerate([(0.0, 1.2), (0.1, 2.0), (0.05, 1.1), (0.2, 1.9), (0.0, 0.9)])
    ]
    assert [t.number for t in finalists.finalists(trials, Constraints())] == [2, 0, 3, 1]
    assert [t.number for t in finalists.finalists(trials, Constraints(max_drop=0.05))] == [2, 0]
    many = [measured(i, 0.01 * i, 1.1 + 0.1 * i) for i in range(30)]
    chosen = finalists.finalists(many, Constraints())
    assert len(chosen) == finalists.MOST_FINALISTS
    assert (chosen[0].number, chosen[-1].number) == (0, 29)


def test_places_of_finalists_that_fell_are_taken_by_others():
    """Trial 1 was measured too fast; now trial 4 stands where it stood. Who only stands behind others is not measured."""
    trials = [measured(i, 0.01 * i, 1.2 + 0.2 * i) for i in range(4)] + [measured(4, 0.012, 1.35), measured(5, 0.03, 1.1)]
    done = {0, 1, 2, 3}
    assert finalists.promoted(trials, done, Constraints(), 1.0) == []
    slower = [t if t.number != 1 else measured(1, 0.01, 1.1) for t in trials]
    assert [t.number for t in finalists.promoted(slower, done, Constraints(), 1.0)] == [4]
    many = [measured(i, 0.01 * i, 1.1 + 0.1 * i) for i in range(30)]
    standing = {0, 4, 8, 12, 16, 20, 24, 29}
    assert finalists.promoted(many, standing, Constraints(), 1.0) == []  # a long front is not measured whole


def test_points_slower_than_dense_or_dominated_leave_the_front():
    def point(number, drop, speed):
        trial = measured(number, drop, speed)
        return point.Confirmed(trial, trial.metric, drop, trial.latency, trial.speedup, "test")

    points = [point(0, 0.0, 0.98), point(1, 0.01, 1.5), point(2, 0.02, 1.4), point(3, 0.05, 2.0)]
    assert [p.trial.number for p in point.final_front(points, Constraints())] == [1, 3]
    assert [p.trial.number for p in point.final_front(points, Constraints(max_drop=0.02))] == [1]
    assert point.final_front(points, Constraints(max_drop=0.0)) == []


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
    assert set(frame["state"]) == {"measured"}


def test_exhausted_space_ends_the_search(tmp_path):
    result = hwprune.search(tiny_workload(), trials=40, sampler="random", space="structured", out=tmp_path / "run", max_drop=0.9)
    assert len({t.recipe.digest for t in result.trials}) == len(result.trials) == recipes_of_tiny()
    assert any("exhausted" in note for note in result.notes)
    best = result.best(max_drop=0.9)
    exported = best.export(tmp_path / "out")
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["files"]["model.onnx"] == sha256(exported / "model.onnx")


def test_candidates_that_crash_are_failed_trials(tmp_path, monkeypatch):
    """Every second candidate takes the measuring process down; the search goes on and says why."""
    from hwprune.latency.bench import Bench

    right, count = Bench.pair, []

    def crash(self, a, b, samples, settings):
        if a == "candidate":
            count.append(1)
            if len(count) % 2:
                self._process.kill()
                self._process.wait()
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


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"trials": -1}, "trials"),
        ({"max_drop": -0.1}, "max_drop"),
        ({"recover": "finetune:many"}, "recover"),
        ({"min_speedup": 0}, "min_speedup"),
        ({"trial_timeout_s": 0}, "trial_timeout"),
    ],
)
def test_senseless_jobs_are_refused(change, text):
    with pytest.raises(UsageError, match=text):
        Job("demo:digits", **change)


def test_jobs_survive_toml(tmp_path):
    job = Job('file.py:f key=wörd "x"', max_drop=0.01, time_s=30.0, memory_limit=10**9)
    job.write(tmp_path)
    assert Job.read(tmp_path) == job


def test_nan_model_is_refused_with_what_to_do(tmp_path):
    from tests.workloads import nan_model

    with pytest.raises(WorkloadError, match="NaN"):
        hwprune.search(nan_model(), trials=2, out=tmp_path / "run")


def test_broken_storage_is_an_error_with_its_name(tmp_path):
    with pytest.raises(RunError, match="no-such-folder"):
        hwprune.search(tiny_workload(), trials=2, out=tmp_path / "run", storage="sqlite:////no-such-folder/x.db")


def test_a_workload_that_can_not_be_used_leaves_no_run_behind(tmp_path):
    from tests.workloads import nan_model

    with pytest.raises(WorkloadError):
        hwprune.search(nan_model(), trials=2, out=tmp_path / "run")
    assert not (tmp_path / "run" / "job.toml").exists()
    assert not (tmp_path / "run" / "study.db").exists()


def test_warm_start_that_was_interrupted_is_completed_once(store):
    space, opened = store
    first = opened(True)
    for sparsity in (0.25, 0.5):
        first.enqueue(space.uniform(sparsity, "l1"), "uniform", again=False)
    second = opened(False)
    for sparsity in (0.25, 0.5, 0.75):
        second.enqueue(space.uniform(sparsity, "l1"), "uniform", again=False)
    assert second.waiting == 3


def test_time_is_over_before_the_first_trial(tmp_path):
    result = hwprune.search(tiny_workload(), trials=0, time_s=1e-6, out=tmp_path / "run")
    assert result.trials == ()
    assert result.front == ()
    assert any("No candidate could be measured" in note for note in result.notes)
    with pytest.raises(UsageError, match="front is empty"):
        result.best()


def test_a_resumed_run_keeps_its_workload_and_target(finished_run):
    for words in (["demo:digits-vit"], ["--target", "cpu-openvino"], ["demo:digits", "x=1"]):
        found = cli("search", *words, "--resume", "--out", str(finished_run))
        assert found.returncode == 2
        assert "keeps its" in found.stderr


def test_device_that_disappears_stops_the_search_and_loses_nothing(tmp_path, monkeypatch):
    """From the second trial on nothing runs any more: an error, not a row of failed candidates; it goes on when the device is back."""
    from hwprune.errors import CandidateFailure, RunError
    from hwprune.latency.bench import Bench

    whole, gone = Bench.load, False

    def load(self, key, path, keep=False, threads=None):
        if gone:
            raise CandidateFailure("run", "CUDA error: device lost")
        whole(self, key, path, keep, threads)

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


def test_int8_target_refuses_a_model_that_is_not_quantised(tmp_path):
    profile = (
        (Path(targets.__file__).parents[1] / "profiles" / "cpu.toml")
        .read_text()
        .replace('precision = "fp32"', 'precision = "int8"')
    )
    (tmp_path / "int.toml").write_text(profile)
    with pytest.raises(WorkloadError, match="is int8, but the model is not quantised"):
        hwprune.search(tiny_workload("top1"), target=str(tmp_path / "int.toml"), trials=1, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('"channel", "head"', '"chanel", "head"', "names 'chanel', which is no pattern"),
        ("avx512 = 16", "avx-512 = 16", "has the key 'avx-512'"),
        ('runtime = "onnxruntime-cpu"', 'runtime = "pytorch-cpu"\noptions = {moode = "compile"}', "has no option moode"),
        ('precision = "fp32"', 'precision = "fp16"', "does not run fp16"),
        ('device = "cpu"', 'device = "cuda"', "runs on cpu"),
    ],
)
def test_faults_of_a_profile(tmp_path, old, new, wanted):
    text = (Path(targets.__file__).parents[1] / "profiles" / "cpu.toml").read_text()
    assert old in text
    (tmp_path / "mine.toml").write_text(text.replace(old, new))
    with pytest.raises(UsageError) as caught:
        hwprune.search(tiny_workload("top1"), target=str(tmp_path / "mine.toml"), trials=1, out=tmp_path / "run")
    assert wanted in str(caught.value)
