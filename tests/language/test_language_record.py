"""front.csv and the table on a terminal."""

from __future__ import annotations

import csv
from dataclasses import asdict

import pytest

from hwprune.language.language_record import LanguagePoint, front_csv, told
from hwprune.records.measurement import Measurement
from hwprune.streaming.phases import Phases, Tokens


def point():
    second, ratio = Measurement(0.1, "s", 0.09, 0.11, 6), Measurement(1.25, "x", 1.2, 1.3, 6)
    token, same = Measurement(0.01, "s", 0.009, 0.011, 6), Measurement(1.0, "x", 0.99, 1.01, 6)
    phases = Phases(Tokens(128, 64), second, token, ratio, Measurement(1.5, "x", 1.4, 1.6, 6), same, same)
    facts = {
        "perplexity": 30.5, "dense_perplexity": 24.25, "params": 120_000_000, "dense_params": 134_000_000,
        "cache_bytes_per_token": 40_000, "phases": phases.to_json(),
    }  # fmt: skip
    return LanguagePoint(7, ({"neuron": 0.5}, {}), facts, {"divergence": 0.3, "perplexity": 33.0})


def test_a_row_for_each_point():
    (row,) = csv.DictReader(front_csv([point()], {}).splitlines())
    assert (row["trial"], row["perplexity"], row["prefill_s"], row["decode_speedup"]) == ("7", "30.5", "0.1", "1.5")
    # 0.1 s and 64 tokens of 0.01 s, where dense took 0.125 s and 0.015 s.
    assert float(row["answer_s"]) == 0.74 and abs(float(row["answer_speedup"]) - (0.125 + 64 * 0.015) / 0.74) < 1e-12
    assert row["model"] == "candidates/7/onnx/model.onnx" and row["folder"] == "candidates/7" and row["precision"] == "fp32"


def test_a_row_for_each_precision_and_for_the_dense_model_in_it():
    one = point()
    told = {"file": "model.int8.onnx", "bytes": 5, "float_bytes": 9, "perplexity": 31.0, "phases": one.facts["phases"]}
    one = LanguagePoint(one.trial, one.blocks, dict(one.facts) | {"quantised": {"int8": told}}, one.unrepaired)
    rows = list(csv.DictReader(front_csv([one], {"int8": told | {"perplexity": 25.0}}).splitlines()))
    assert [(row["trial"], row["precision"], row["perplexity"], row["params"]) for row in rows] == [
        ("dense", "int8", "25.0", "134000000"), ("7", "fp32", "30.5", "120000000"), ("7", "int8", "31.0", "120000000")
    ]  # fmt: skip
    assert rows[2]["model"] == "candidates/7/onnx/model.int8.onnx" and rows[0]["model"] == "candidates/dense/onnx/model.int8.onnx"


def test_the_table_fits_a_terminal_and_says_both_phases():
    text = told({"front": [asdict(point())], "job": {}})
    assert "1.25x [1.20, 1.30]" in text and "1.50x [1.40, 1.60]" in text and "perplexity 24.25" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_the_file_that_was_measured_is_named():
    one = point()
    one = LanguagePoint(one.trial, one.blocks, {**one.facts, "openvino": "openvino/openvino_model.xml"}, one.unrepaired)
    (row,) = csv.DictReader(front_csv([one], {}).splitlines())
    assert row["model"] == "candidates/7/openvino/openvino_model.xml"


def test_that_nothing_but_plain_models_was_run_is_told():
    plain, found = {"fixed": "[[0, 1]]"}, {"expected": 0.2}
    for trials, says in (([plain], True), ([plain, found], False), ([], False)):
        text = told({"front": [asdict(point())], "job": {}, "trials": trials})
        assert ("the same share of neurons in all blocks" in text) == says


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"max_drop": 7.0}, "--max-drop 7.00: trial 7 is the fastest model that was found; its perplexity is 6.25 above"),
        ({"max_drop": 6.0}, "6.25 above the dense one's, more than allowed"),
        (
            {"max_drop": 0.3, "relative": True},
            "--max-drop 30.0 %: trial 7 is the fastest model that was found; its perplexity is 25.8 %",
        ),
        ({"max_drop": 0.25, "relative": True}, "25.8 % above the dense one's, more than allowed"),
    ],
)
def test_how_the_fastest_stands_to_its_limit(job, words):
    assert words in told({"front": [asdict(point())], "job": job})


def test_what_a_distillation_has_brought_is_told():
    one = point()
    learned = {"tokens": 100_352, "seconds": 300.0, "teacher_seconds": 60.0}
    one = LanguagePoint(one.trial, one.blocks, {**one.facts, "untaught_perplexity": 40.25, "distilled": learned}, one.unrepaired)
    text = " ".join(told({"front": [asdict(one)], "job": {}}).split())
    assert "from 100 k tokens each (6:00 in all)" in text and "trial 7 40.25 -> 30.50" in text
    (row,) = csv.DictReader(front_csv([one], {}).splitlines())
    assert row["untaught_perplexity"] == "40.25"
    assert "Taught" not in told({"front": [asdict(point())], "job": {}})
