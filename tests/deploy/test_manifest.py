"""Manifests that somebody changed: every fault is told at once, and none is a traceback."""

from __future__ import annotations

import json

import pytest

from hwprune.deploy.verify import verify
from hwprune.errors import UsageError

SOUND = {
    "schema": 1,
    "format": "onnx",
    "workload": {"metric": "top1"},
    "target": {"name": "cpu"},
    "fingerprint": {"identity": {"device": "x"}},
    "point": {"speedup": {"value": 1.5}},
    "files": {},
}


def told(folder, manifest):
    """What verifying says of a manifest that has faults."""
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError) as caught:
        verify(folder)
    assert "export the point again" in str(caught.value)
    return list(caught.value.faults)


def test_every_missing_key_is_named_at_once(tmp_path):
    assert told(tmp_path, {"schema": 1, "format": "onnx", "workload": {}}) == [
        "files is missing",
        "target is missing",
        "fingerprint is missing",
        "point is missing",
        "workload.metric is missing",
    ]


@pytest.mark.parametrize("key", ["format", "files", "workload", "target", "fingerprint", "point"])
def test_one_missing_key_is_named(tmp_path, key):
    manifest = {name: value for name, value in SOUND.items() if name != key}
    (fault,) = told(tmp_path, manifest)
    assert fault.startswith(key) and fault.endswith("is missing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 3}, "format must be a text, got 3"),
        ({"files": {"model.onnx": 1}}, "files.model.onnx must be a text, got 1"),
        ({"files": []}, "files must be a table, got []"),
        ({"workload": "top1"}, "workload must be a table, got 'top1'"),
        ({"workload": {"metric": None}}, "workload.metric must be a text, got None"),
        ({"target": {"name": "cpu", "profile": "cpu"}}, "target.profile must be a table or null"),
        ({"fingerprint": {"identity": "here"}}, "fingerprint.identity must be a table"),
        ({"point": {"speedup": 2.0}}, "point.speedup must be a table, got 2.0"),
        ({"point": {"speedup": {"value": 0}}}, "point.speedup.value must be > 0, got 0"),
        ({"point": {"speedup": {"value": True}}}, "point.speedup.value must be a number, got True"),
        ({"latency_source": None}, "latency_source must be one of measured, table, estimated"),
        ({"latency_source": ["table"]}, "latency_source must be one of measured, table, estimated"),
        ({"samples": []}, "samples must be a table"),
        ({"samples": {"metric": {}}}, "samples.metric.value is missing"),
        ({"tolerance": "x"}, "tolerance must be a number, got 'x'"),
        ({"tolerance": float("nan")}, "tolerance must be a number, got nan"),
        ({"tolerance": 0.5}, "tolerance must be <= 0.05, got 0.5"),
        ({"layout": None}, "layout must be a table, got None"),
        ({"layout": {"zeros": {"w": "many"}}}, "layout.zeros.w must be a number, got 'many'"),
        ({"layout": {"n_of_m": {"2:0": []}}}, "layout.n_of_m: '2:0' does not match"),
        ({"layout": {"n_of_m": {"2:4": "w"}}}, "layout.n_of_m.2:4 must be a list, got 'w'"),
    ],
)
def test_values_of_another_type_are_told(tmp_path, change, words):
    faults = told(tmp_path, {**SOUND, **change})
    assert len(set(faults)) == len(faults)
    assert words in faults[0]


@pytest.mark.parametrize("manifest", [[], {}, {"schema": 2}, {"schema": None}])
def test_what_is_no_manifest(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="is not a manifest of schema 1"):
        verify(tmp_path)


def test_a_manifest_without_faults_is_gone_on_with(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(SOUND))
    (result,) = verify(tmp_path)
    assert "does not list model.onnx" in result.checks[0].text


def test_what_runs_nothing_needs_only_its_files(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "format": "recipe", "files": {}}))
    (result,) = verify(tmp_path)
    assert result.passed
