"""A finished front on another runtime, device or batch."""

from __future__ import annotations

import shutil

import pytest

from hwprune.cli.main import main
from hwprune.deploy.reranking import rerank
from hwprune.errors import UsageError
from hwprune.records import record
from hwprune.records.target import load as load_target


def test_a_front_is_measured_on_another_runtime_and_batch(finished_run, tmp_path, capsys):
    points, facts = rerank(finished_run, load_target("cpu-openvino"), batch=4)
    data = record.read_record(finished_run).data
    assert {p.trial for p in points} == {p["trial"] for p in data["front"]}
    assert facts["batch"] == 4 and facts["identity"]["runtime"].startswith("openvino")
    before = {p["trial"]: p for p in data["front"]}
    speedups = [p.speedup.value for p in points]
    assert speedups == sorted(speedups)
    for point in points:
        assert point.drop == pytest.approx(before[point.trial]["drop"], abs=0.05)
        assert point.speedup_before == before[point.trial]["speedup"]["value"]
    out = tmp_path / "there"
    words = ["rerank", str(finished_run), "--target", "cpu-openvino", "--batch", "2", "--out", str(out), "--quiet"]
    assert main(words) == 0
    assert "for a batch of 2" in capsys.readouterr().out
    assert (out / "rerank.csv").read_text().startswith("trial,on_front,speedup") and (out / "rerank.json").is_file()


def test_a_point_that_does_not_run_there_is_told_and_the_others_go_on(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    data = record.read_record(run).data
    victim = data["front"][0]["trial"]
    (run / "candidates" / str(victim) / "model.onnx").write_bytes(b"not a model")
    points, _ = rerank(run, load_target("cpu"))
    bad = next(p for p in points if p.trial == victim)
    assert bad.speedup is None and bad.failure and not bad.on_front
    assert all(p.speedup is not None for p in points if p.trial != victim)


def test_what_can_not_be_reranked_is_told(finished_run, tmp_path):
    with pytest.raises(UsageError, match=r"runs model\.pt2 files"):
        rerank(finished_run, load_target("cpu-pytorch"))
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "candidates")
    with pytest.raises(UsageError, match="is missing"):
        rerank(run, load_target("cpu"))


def test_files_of_another_precision_are_not_measured_under_a_targets_name(finished_run):
    import dataclasses

    half = dataclasses.replace(load_target("cpu"), precision="int8")
    with pytest.raises(UsageError, match="those of the run are in fp32"):
        rerank(finished_run, half)
