"""The schemas, as anybody's tools see them, and what is said of files that break them."""

from __future__ import annotations

import json
from importlib import resources

import jsonschema
import pytest

import hwprune
from hwprune.common import json_schema
from hwprune.deploy import quantise
from hwprune.deploy.formats import FORMATS

SCHEMAS = {"record": ("hwprune.records", "record.schema.json"), "manifest": ("hwprune.deploy", "manifest.schema.json")}


def schema(name):
    package, file = SCHEMAS[name]
    return json.loads((resources.files(package) / file).read_text())


@pytest.mark.parametrize("name", SCHEMAS)
def test_it_is_a_json_schema(name):
    jsonschema.Draft202012Validator.check_schema(schema(name))


def test_plain_jsonschema_accepts_what_a_search_and_an_export_have_written(finished_run, tmp_path):
    plain = jsonschema.Draft202012Validator(schema("record"))
    record = json.loads((finished_run / "record.json").read_text())
    assert list(plain.iter_errors(record)) == [] and record["trials"] and record["front"]
    hwprune.load(finished_run).best().export(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(jsonschema.Draft202012Validator(schema("manifest")).iter_errors(manifest)) == []


def test_the_manifest_knows_the_formats_that_run_and_the_largest_tolerance():
    rules = schema("manifest")
    assert set(rules["if"]["properties"]["format"]["enum"]) == {name for name, form in FORMATS.items() if form.runs is not None}
    most = max(precision.tolerance for precision in quantise.PRECISIONS.values())
    assert rules["then"]["properties"]["tolerance"]["maximum"] == most


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"finished": 1}, "finished must be true or false, got 1"),
        ({"baseline": []}, "baseline must be a table, got []"),
        ({"latency_source": "guessed"}, "latency_source must be one of measured, table, estimated, got 'guessed'"),
        ({"job": {"max_drop": "x", "sampler": "tpe", "seed": 0}}, "job.max_drop must be a number or null, got 'x'"),
        ({"job": {"max_drop": None, "sampler": "tpe", "seed": True}}, "job.seed must be a whole number, got True"),
        ({"notes": ["a", 3]}, "notes[1] must be a text, got 3"),
        ({"fingerprint": {"identity": {}, "conditions": {"load_average": [float("inf")]}}}, "load_average[0] must be a number"),
    ],
)
def test_faults_are_told_in_words(finished_run, change, words):
    record = json.loads((finished_run / "record.json").read_text())
    (fault,) = json_schema.faults({**record, **change}, *SCHEMAS["record"])
    assert words in fault


def test_a_measurement_that_may_be_null_is_told_what_it_lacks(finished_run):
    record = json.loads((finished_run / "record.json").read_text())
    record["baseline"]["test_metric"] = {"value": 1.0, "ci_low": 0.9}
    assert json_schema.faults(record, *SCHEMAS["record"]) == ["baseline.test_metric.ci_high is missing"]
    record["baseline"]["test_metric"] = 3
    assert json_schema.faults(record, *SCHEMAS["record"]) == ["baseline.test_metric must be a table or null, got 3"]


def test_speedups_are_above_zero(finished_run):
    record = json.loads((finished_run / "record.json").read_text())
    record["front"][0]["speedup"]["ci_low"] = 0
    assert json_schema.faults(record, *SCHEMAS["record"]) == ["front[0].speedup.ci_low must be > 0, got 0"]


def test_what_a_trial_holds_depends_on_its_state(finished_run):
    record = json.loads((finished_run / "record.json").read_text())
    done = next(trial for trial in record["trials"] if trial["state"] == "measured")
    done["state"] = "failed"
    assert json_schema.faults(record, *SCHEMAS["record"]) == [f"trials[{record['trials'].index(done)}].failure is missing"]
