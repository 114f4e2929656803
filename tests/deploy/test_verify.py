"""Exports, and the check that they are still what they were."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch

import hwprune
from hwprune.cli.main import main
from hwprune.deploy.checks import Gate, Verified
from hwprune.deploy.exporting import export_run
from hwprune.deploy.verify import verify
from hwprune.errors import UsageError
from hwprune.records import record
from tests.conftest import tiny_workload


@pytest.fixture(scope="module")
def number(finished_run):
    return record.read_record(finished_run).data["front"][0]["trial"]


@pytest.fixture(scope="module")
def exported(finished_run, number, tmp_path_factory):
    return export_run(finished_run, number, "onnx", tmp_path_factory.mktemp("export") / "out")


def checks(results):
    return {check.name: check for check in results[0].checks}


def test_export_is_self_contained_and_verifies(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in exported.iterdir()} - {"manifest.json"}
    assert manifest["samples"]["examples"] == 60
    found = checks(verify(exported))
    assert set(found) == {"integrity", "layout", "parity", "metric", "latency"}
    for name in ("integrity", "layout", "parity", "metric"):
        assert found[name].passed, found[name]


def test_run_verifies(finished_run, number):
    results = verify(finished_run)
    assert [r.name for r in results] == [f"trial {p['trial']}" for p in record.read_record(finished_run).data["front"]]
    assert checks(results)["metric"].passed
    assert results[0].speedup.value > 1
    (one,) = verify(finished_run / "candidates" / str(number))
    assert one.name == f"trial {number}"


def test_one_flipped_byte_is_found(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    data = bytearray((copy / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.onnx").write_bytes(bytes(data))
    (result,) = verify(copy)
    assert not result.passed
    assert "model.onnx has changed" in checks([result])["integrity"].text


def test_another_model_under_the_same_name_is_found(exported, finished_run, tmp_path):
    """Even with a manifest that was made to fit."""
    from hwprune.common.files import dump_json, sha256

    copy = shutil.copytree(exported, tmp_path / "copy")
    shutil.copyfile(copy / "dense.onnx", copy / "model.onnx")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = sha256(copy / "model.onnx")
    (copy / "manifest.json").write_text(dump_json(manifest))
    assert checks(verify(copy))["parity"].passed is False


def test_manifest_can_not_point_out_of_its_folder(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../secret"] = "0"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "out of the folder" in checks(verify(copy))["integrity"].text


def test_swapped_labels_are_found(finished_run, tmp_path):
    copy = shutil.copytree(finished_run, tmp_path / "run")
    with np.load(copy / "baseline" / "test.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name in arrays:
        if name.endswith("target"):
            arrays[name] = (arrays[name] + 1) % 4
    np.savez(copy / "baseline" / "test.npz", **arrays)
    assert checks(verify(copy))["metric"].passed is False


def test_recipe_and_pt2_exports(finished_run, number, tmp_path):
    folder = export_run(finished_run, number, "recipe", tmp_path / "recipe")
    assert {p.name for p in folder.iterdir()} == {"recipe.json", "manifest.json"}
    with pytest.raises(UsageError, match="--workload"):
        export_run(finished_run, number, "pt2", tmp_path / "none")
    folder = export_run(finished_run, number, "pt2", tmp_path / "pt2", tiny_workload("top1"))
    module = torch.export.load(folder / "model.pt2").module()
    x = torch.randn(4, 1, 8, 8)
    from tests.pruning.test_pruner import onnx_run

    expected = onnx_run(finished_run / "candidates" / str(number) / "model.onnx", x)
    assert float((module(x).detach() - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_export_needs_a_point_and_an_empty_folder(finished_run, number, tmp_path):
    with pytest.raises(UsageError, match="not a point of the front"):
        export_run(finished_run, 999, "onnx", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="empty folder"):
        export_run(finished_run, number, "onnx", tmp_path / "full")


def test_best_says_what_is_nearest(finished_run):
    from hwprune.searching.final.point import Confirmed
    from hwprune.searching.result import choose
    from tests.records.test_trial import measured

    points = []
    for index, (drop, speed) in enumerate([(0.01, 1.2), (0.05, 2.0)]):
        trial = measured(index, drop, speed)
        points.append(Confirmed(trial, trial.metric, drop, trial.latency, trial.speedup, "test"))
    assert choose(points, 0.02, None).trial.number == 0
    assert choose(points, None, 1.1).trial.number == 0
    assert choose(points, None, None).trial.number == 1
    with pytest.raises(UsageError, match=r"trial 0 with drop 0\.0100 at 1\.20x"):
        choose(points, 0.001, None)
    assert isinstance(hwprune.__version__, str)


def test_a_build_fails_below_a_speedup_or_above_a_drop(exported, capsys):
    from hwprune.cli.main import main

    (easy,) = verify(exported, gate=Gate(min_speedup=0.01, max_drop=1.0))
    found = {check.name: check for check in easy.checks}
    assert found["speedup"].passed and found["drop"].passed
    assert easy.drop is not None and f"{easy.drop:+.4f}" in found["drop"].text
    (hard,) = verify(exported, gate=Gate(min_speedup=1e6, max_drop=-1.0))
    found = {check.name: check for check in hard.checks}
    assert found["speedup"].passed is False and found["drop"].passed is False and not hard.passed
    assert "at least 1e+06x is asked for" in found["speedup"].text
    assert main(["verify", str(exported), "--min-speedup", "1000000"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_gate_is_not_passed_by_what_could_not_be_measured():
    nothing = Verified("x")
    Gate(min_speedup=1.5, max_drop=0.01).judge(nothing)
    assert [check.passed for check in nothing.checks] == [False, False]
    assert all("could" in check.text for check in nothing.checks)
    free = Verified("x")
    Gate().judge(free)
    assert free.checks == []


def test_an_export_that_can_not_be_written_into_is_verified(exported, tmp_path):
    """A build may mount it read-only."""
    shutil.copytree(exported, tmp_path / "deploy")
    before = {path.name for path in (tmp_path / "deploy").iterdir()}
    (tmp_path / "deploy").chmod(0o555)
    try:
        found = checks(verify(tmp_path / "deploy"))
    finally:
        (tmp_path / "deploy").chmod(0o755)
    assert found["parity"].passed
    assert {path.name for path in (tmp_path / "deploy").iterdir()} == before


def test_without_a_choice_the_recommended_point_is_exported(finished_run, tmp_path, capsys):
    """Not the fastest of any drop: what the summary and the report recommend."""
    told = record.read_record(finished_run)
    data = copy.deepcopy(told.data)
    slow = data["front"][0]
    other = next(row["number"] for row in data["trials"] if row["state"] == "measured" and row["number"] != slow["trial"])
    fast = {**slow, "trial": other}
    data["front"] = [slow, fast]
    slow |= {"drop": 0.0, "told_drop": 0.0, "told_high": 0.001}
    fast |= {"drop": 0.3, "told_drop": 0.3, "told_high": 0.4, "speedup": {**fast["speedup"], "value": 99.0}}
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "record.json").write_text(json.dumps(data))
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "a folder")]) == 0
    out = capsys.readouterr().out
    assert f"trial {slow['trial']}: " in out and f"verify '{tmp_path / 'a folder'}'" in out
