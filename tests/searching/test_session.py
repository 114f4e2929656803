"""Whole searches: the run directory, kills, resuming, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hwprune
from hwprune.errors import RunError, UsageError, WorkloadError
from hwprune.searching.job import Job
from hwprune.searching.progress import Progress
from hwprune.searching.setup import Setup
from hwprune.searching.space import exactness, space_file
from hwprune.searching.space.space import SearchSpace
from hwprune.searching.space.unit_space import UnitSpace
from hwprune.searching.study.store import Store
from tests.conftest import tiny_workload
from tests.searching.helpers import read_csv

ROOT = Path(__file__).resolve().parents[2]


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
        "drop_ci_low",
        "drop_ci_high",
        "told_drop",
        "told_high",
        "sure",
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


def test_broken_storage_is_an_error_with_its_name(tmp_path):
    with pytest.raises(RunError, match="no-such-folder"):
        hwprune.search(tiny_workload(), trials=2, out=tmp_path / "run", storage="sqlite:////no-such-folder/x.db")


def test_a_workload_that_can_not_be_used_leaves_no_run_behind(tmp_path):
    from tests.workloads import nan_model

    with pytest.raises(WorkloadError):
        hwprune.search(nan_model(), trials=2, out=tmp_path / "run")
    assert not (tmp_path / "run" / "job.toml").exists()
    assert not (tmp_path / "run" / "study.db").exists()


def test_a_resumed_run_keeps_its_workload_and_target(finished_run):
    for words in (["demo:digits-vit"], ["--target", "cpu-openvino"], ["demo:digits", "x=1"]):
        found = cli("search", *words, "--resume", "--out", str(finished_run))
        assert found.returncode == 2
        assert "keeps its" in found.stderr


@pytest.mark.parametrize("started", [True, False])
def test_which_masks_are_exact_is_decided_once_a_study(monkeypatch, started):
    """Who resumes or joins a search takes over its decision, whatever its own database holds and its own time is."""
    space = SearchSpace(
        space_file.load("mixed"), tuple(UnitSpace(name, "", 4, {"2:4": (0.5,)}, ("obs", "l2")) for name in "ab"), "none", ()
    )
    monkeypatch.setattr(exactness, "beyond", lambda *_: (["a"], 1000.0))
    study = {"started": started, "swept_masks": ["b"]}
    setup = SimpleNamespace(job=Job("demo:digits", time_s=100), notes=[], progress=Progress(), swept_masks=[])
    found = Setup._affordable(setup, space, None, SimpleNamespace(read=study.get))
    expected = "b" if started else "a"
    assert {unit.unit: unit.methods[0] for unit in found.units}[expected] == "sparsegpt"
    assert setup.swept_masks == [expected]
    assert len(setup.notes) == (0 if started else 1)


def test_a_search_that_is_interrupted_in_its_first_minute_can_be_resumed(tmp_path, monkeypatch):
    """Before the first trial there is no study: the job is there, and the search begins again with it."""
    from hwprune.searching.setup import Setup

    run, words = tmp_path / "run", {"trials": 2, "seed": 3, "max_drop": 0.9}
    stages = ("announce", "trace", "measure_dense", "fit_space", "build_model")
    for stage in stages:

        def interrupted(*_args, **_kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Setup, stage, interrupted)
            with pytest.raises(KeyboardInterrupt):
                hwprune.search(tiny_workload("top1"), out=run, resume=run.exists(), **words)
        job = Job.read(run)
        assert (job.trials, job.seed, job.max_drop) == (2, 3, 0.9), stage
    result = hwprune.search(tiny_workload("top1"), out=run, resume=True, **words)
    assert len([t for t in result.trials if t.searched]) == 2


def test_a_study_that_was_lost_is_no_beginning(tmp_path):
    run = tmp_path / "run"
    hwprune.search(tiny_workload("top1"), out=run, trials=1)
    (run / "study.db").unlink()
    with pytest.raises(hwprune.HwpruneError):
        hwprune.search(tiny_workload("top1"), out=run, trials=2, resume=True)
