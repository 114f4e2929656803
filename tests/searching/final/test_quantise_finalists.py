"""Precisions beside pruning: what is said of those that were tried."""

import json
import shutil
from dataclasses import replace

import onnx
import pytest
import torch

import hwprune
from hwprune.cli.main import main
from hwprune.common.files import dump_json
from hwprune.deploy.exporting import export_run
from hwprune.errors import UsageError
from hwprune.records import record
from hwprune.searching.final.point import Confirmed
from hwprune.searching.final.quantise_finalists import left_out
from tests.conftest import tiny_workload
from tests.deploy.helpers import checks
from tests.records.test_trial import measured


def point(number, drop, speedup, precision=""):
    trial = measured(number, drop, speedup)
    if precision:
        trial = replace(trial, quantised={"precision": precision, "of": "dense"})
    return Confirmed(trial, trial.metric, drop, trial.latency, trial.speedup, "test")


def test_a_precision_that_is_nowhere_on_the_front_is_told_with_its_fastest():
    eight = [point(10, 0.02, 1.5, "int8"), point(11, 0.3, 9.85, "int8")]
    four = [point(12, 0.001, 1.1, "int4")]
    notes = left_out([*eight, *four], [point(1, 0.0, 2.0), *four], share=True)
    assert len(notes) == 1 and notes[0].startswith("int8 was tried on 2 models") and "9.85x at a drop of 30.0 points" in notes[0]
    assert left_out(eight, eight, share=True) == [] and left_out([], [point(1, 0.0, 2.0)], share=True) == []


@pytest.fixture(scope="module")
def quantised_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("quantised") / "run"
    hwprune.search(tiny_workload("top1"), trials=3, out=out, seed=1, quantize="int8,fp16,int4")
    return out


def test_quantised_candidates_are_trials_with_numbers_and_files(quantised_run):
    data = record.read_record(quantised_run).data
    rows = {t["number"]: t for t in data["trials"] if t.get("quantised")}
    points = {p["trial"]: p for p in data["quantised"]}
    assert set(points) == set(rows) and rows
    assert {row["quantised"]["precision"] for row in rows.values()} <= {"int8", "fp16"}  # no layer is large enough for 4 bits
    assert any(row["quantised"]["of"] == "dense" and not row["recipe"]["choices"] for row in rows.values())
    assert sum("could not be held in int4" in note for note in data["notes"]) == len(rows) // 2
    for number, point in points.items():
        assert point["speedup"]["conditions"]["processes"] == 2 and point["split"] == "test"
        parent = rows[number]["quantised"]["of"]
        if parent != "dense":
            assert rows[number]["recipe"] == next(t for t in data["trials"] if t["number"] == parent)["recipe"]
            assert rows[number]["params"] == next(t for t in data["trials"] if t["number"] == parent)["params"]
    assert len([t for t in data["trials"] if not t.get("quantised")]) == 3  # they take no trial's place


def test_a_resumed_run_quantises_nothing_twice_and_samplers_learn_nothing_from_it(quantised_run, tmp_path):
    from hwprune.searching.study.store import Store

    run = shutil.copytree(quantised_run, tmp_path / "run")
    before = {t["number"] for t in record.read_record(run).data["trials"]}
    hwprune.search(tiny_workload("top1"), trials=3, out=run, seed=1, quantize="int8,fp16,int4", resume=True)
    after = record.read_record(run).data
    known = {
        (t["quantised"]["of"], t["quantised"]["precision"], t["quantised"]["source"])
        for t in after["trials"]
        if t.get("quantised")
    }
    assert len(known) == sum(bool(t.get("quantised")) for t in after["trials"])
    assert before <= {t["number"] for t in after["trials"]}
    store = Store(Store.default_storage(run), None)
    complete = [t for t in store.study.get_trials() if t.state.name == "COMPLETE"]
    assert all("int8" not in str(t.user_attrs.get("origin")) for t in complete)
    store.close()


def test_quantised_points_are_reported_exported_and_verified(quantised_run, tmp_path, capsys):
    data = record.read_record(quantised_run).data
    number = data["quantised"][0]["trial"]
    copy = shutil.copytree(quantised_run, tmp_path / "run")
    folder = copy / "candidates" / str(number)
    if not folder.is_dir():  # it was not on this machine's front: put it there
        parent = next(p for p in (copy / "candidates").iterdir() if (p / "model.onnx").is_file())
        shutil.copytree(parent, folder)
        from hwprune.deploy import quantise

        quantise.quantise(
            onnx.load(copy / "baseline" / "model.onnx"),
            "int8",
            lambda: [[torch.randn(20, 1, 8, 8).numpy()]],
            folder / "model.onnx",
        )
    if number not in {p["trial"] for p in data["front"]}:
        data["front"].append(data["quantised"][0])
        (copy / "record.json").write_text(dump_json(data))
    assert main(["report", str(copy)]) == 0
    assert "int8 of the dense model" in capsys.readouterr().out
    header, *lines = (copy / "front.csv").read_text().splitlines()
    row = dict(zip(header.split(","), next(line for line in lines if line.startswith(f"{number},")).split(","), strict=True))
    assert (row["precision"], row["quantised_from"]) == ("int8", "dense")
    out = export_run(copy, number, "onnx", tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["quantisation"]["precision"] == "int8" and manifest["tolerance"] == 5e-2
    assert len(manifest["calibration_sha256"]) == 64
    _, found = checks(out)
    assert found["parity"].passed and found["layout"].passed
    for form in ("pt2", "safetensors"):
        with pytest.raises(UsageError, match="is quantised"):
            export_run(copy, number, form, tmp_path / form, tiny_workload("top1"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--quantize", "int9"], "Unknown precision"),
        (["--quantize", "int8", "--estimate", "--target", "a100"], "target that is measured"),
        (["--quantize", "int8", "--target", "cpu-pytorch"], "makes ONNX files"),
    ],
)
def test_what_can_not_be_quantised_is_told_before_the_search(words, told, tmp_path, capsys):
    code = main(["search", "tests/workloads.py:good", "--trials", "1", "--quiet", "--out", str(tmp_path / "run"), *words])
    assert code == 2
    assert told.lower() in capsys.readouterr().err.lower()


def test_a_trained_trial_and_its_quantised_form_are_told_apart(tmp_path, monkeypatch):
    """Both remember the training; on resume the quantised one must not stand for the trained one."""
    from types import SimpleNamespace

    from hwprune.recovery.plan import Plan
    from hwprune.searching.constraints import Constraints
    from hwprune.searching.final import train_finalists

    plan = Plan("distill", 1)
    parent = SimpleNamespace(number=3, recovery={}, quantised={})
    trained = SimpleNamespace(number=7, recovery={"of": 3, "plan": plan.to_json(), "seconds": 1.0}, quantised={})
    small = SimpleNamespace(number=8, recovery=trained.recovery, quantised={"of": 7, "precision": "int8"})
    store = SimpleNamespace(
        read={"training rate distill:1": 1e-3}.get,
        write=lambda *_: None,
        trials=lambda as_searched=False: [parent, trained, small],
    )
    monkeypatch.setattr(train_finalists, "_looked_at", lambda *_: [parent])
    monkeypatch.setattr(train_finalists._Trainer, "has_files", lambda self, trial: True)
    progress = SimpleNamespace(stage=lambda *_: None)
    found = train_finalists.train_finalists(SimpleNamespace(run=tmp_path), store, plan, Constraints(), progress)
    assert found.trials == [trained]
