"""Broken files are told about, and nothing else happens. The long version is benchmarks/fuzz_files.py."""

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

from hwprune.errors import UsageError
from hwprune.records.record import read_record

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def fuzzing():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("fuzz_files", FOLDER / "fuzz_files.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


@pytest.mark.parametrize("name", ["job", "target", "space", "table", "recipe", "record", "manifest", "onnx"])
def test_a_slice_of_the_fuzzing(fuzzing, finished_run, tmp_path, name):
    said = []
    readers = fuzzing.Readers(tmp_path, finished_run)
    readers.read(name, readers.onnx if name == "onnx" else readers._text(name, readers.valid[name]))  # unbroken it is read
    assert fuzzing.fuzz(readers, name, 60, 1, said.append) == 0, said


def test_the_fuzzer_finds_what_is_not_handled(fuzzing, tmp_path, monkeypatch):
    readers = fuzzing.Readers(tmp_path, None)

    def read(name, data):
        raise KeyError("x")

    monkeypatch.setattr(readers, "read", read)
    assert fuzzing.fuzz(readers, "job", 5, 0, lambda _: None) > 0
    draw = random.Random(0)
    changed = sum(fuzzing.mutated(readers.valid["job"], draw) != readers.valid["job"] for _ in range(50))
    assert changed > 40


def test_all_faults_of_a_record_are_told_at_once(finished_run, tmp_path):
    data = json.loads((finished_run / "record.json").read_text())
    data["workload"]["metric"] = 3
    del data["baseline"]["latency"]
    data["front"][0]["trial"] = 999
    data["trials"][0]["recipe"]["choices"] = "none"
    (tmp_path / "record.json").write_text(json.dumps(data))
    with pytest.raises(UsageError) as told:
        read_record(tmp_path)
    text = str(told.value)
    assert "workload.metric must be a text, got 3" in text and "baseline.latency is missing" in text
    assert "recipe.choices must be a list" in text
    data = json.loads((finished_run / "record.json").read_text())
    data["front"][0]["trial"] = 999
    (tmp_path / "record.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="999 is no trial of the record"):
        read_record(tmp_path)
