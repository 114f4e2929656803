"""Prompts and single tokens: what is asked, what is timed, and what is told of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from hwprune.errors import RunError, UsageError
from hwprune.latency.fresh import Remeasured
from hwprune.records import target as targets
from hwprune.records.measurement import Measurement
from hwprune.streaming import phases, road
from hwprune.streaming.cached_onnx import CacheShape
from hwprune.streaming.phases import Phases, Tokens, check_target
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import llama, text


def measurement(value, unit="s"):
    return Measurement(value, unit, 0.9 * value, 1.1 * value, 6)


def test_tokens_are_read():
    assert Tokens.parse("128+64") == Tokens(128, 64) and Tokens(128, 64).past == 160
    for wrong in ("128", "0+4", "a+b", "12+", "-1+3", "1.5+2"):
        with pytest.raises(UsageError, match=r"PROMPT\+NEW"):
            Tokens.parse(wrong)


def test_an_answer_is_its_prompt_and_every_token():
    x = measurement
    found = Phases(Tokens(100, 10), x(0.2), x(0.01), x(2.0, "x"), x(1.0, "x"), x(1.0, "x"), x(1.0, "x"))
    assert found.answer_s == pytest.approx(0.3) and found.answer_speedup == pytest.approx((0.4 + 0.1) / 0.3)
    told = "\n".join(found.text())
    assert "Prompt of 100 tokens: 2.00x [1.80, 2.20], 200 ms (500 tokens a second)" in told
    assert "Next token after 105: 1.00x [0.90, 1.10], 10.0 ms (100 tokens a second)" in told
    assert "(100 tokens in, 10 out): 1.67x, 300 ms" in told
    assert Phases.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_each_model_is_timed_with_a_cache_of_its_own_heads(monkeypatch, tmp_path):
    seen = []

    def remeasure(models, dense, example, make, settings):
        seen.append({key: [array.shape for array in np.load(path).values()] for key, path in example.items()})
        assert models == {"model": Path("small.onnx")} and dense == Path("dense.onnx") and settings.limit_s == phases.LIMIT_S
        made = {key: Remeasured(measurement(0.1), measurement(1.0, "x")) for key in ("dense", "model")}
        return made if len(seen) < 3 else {"dense": made["dense"]}

    monkeypatch.setattr(phases.fresh, "remeasure", remeasure)
    wide, narrow = CacheShape((3, 3), (8, 8)), CacheShape((2, 2), (8, 8))
    arguments = (Path("dense.onnx"), wide.inputs), (Path("small.onnx"), narrow.inputs), targets.load("cpu"), Tokens(16, 8)
    phases.measure(*arguments)
    assert seen[0] == {"dense": [(1, 16), (1, 3, 0, 8), (1, 3, 0, 8)], "model": [(1, 16), (1, 2, 0, 8), (1, 2, 0, 8)]}
    assert seen[1] == {"dense": [(1, 1), (1, 3, 20, 8), (1, 3, 20, 8)], "model": [(1, 1), (1, 2, 20, 8), (1, 2, 20, 8)]}
    with pytest.raises(RunError, match=r"prefill can't be measured on cpu: small\.onnx fails there"):
        phases.measure(*arguments)


def test_what_a_process_does_to_all_files_is_no_speedup(monkeypatch):
    """Six processes in which the reference is slow or fast by turns; the model is 1.2 times as fast as its copy in each."""
    odd = [1.07, 0.93, 1.08, 0.98, 1.1, 0.96]
    noise = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98]

    def made(values):
        ratio = sorted(values)[2] / 2 + sorted(values)[3] / 2
        speedup = Measurement(ratio, "x", min(values), max(values), 6, {"speedups": values})
        return Remeasured(Measurement(0.1 / ratio, "s", 0, 1, 6, {"dense_s": 0.1}), speedup)

    found = {"dense": made(odd), "model": made([1.2 * a * b for a, b in zip(odd, noise, strict=True)])}
    monkeypatch.setattr(phases.fresh, "remeasure", lambda *_: found)
    shape = CacheShape((1, 1), (8, 8))
    told = phases.measure(
        (Path("a"), shape.inputs), (Path("b"), shape.inputs), targets.load("cpu"), Tokens(16, 8)
    )  # fmt: skip
    decode = told.decode_speedup
    assert (decode.value, decode.ci_low, decode.ci_high) == pytest.approx((1.2, 1.2 * 0.98, 1.2 * 1.02))
    assert told.decode.value == pytest.approx(0.1 / 1.2) and told.same_decode.ci_high == 1.1
    assert decode.conditions["copies"] == odd


def test_without_the_same_processes_nothing_is_changed():
    one = Remeasured(measurement(0.1), measurement(1.3, "x"))
    assert phases.beside_copies(one, measurement(1.0, "x")) is one


def test_what_runs_no_such_file_is_known_before_anything_is_pruned(tmp_path):
    check_target(targets.load("cpu"), Tokens(4, 2), 6)
    with pytest.raises(UsageError, match=r"--tokens 4\+3 is more than the 6 positions"):
        check_target(targets.load("cpu"), Tokens(4, 3), 6)
    other = dataclasses.replace(targets.load("cpu"), runtime="llama.cpp")
    with pytest.raises(UsageError, match="which llama.cpp .cpu. does not run"):
        road.prune_folder(
            llama(tmp_path / "m"), TextData(text(tmp_path / "a.txt"), None, length=16, most=4), SweepPlan([("neuron", 0.5)], "l2", "none"),
            tmp_path / "out", onnx=True, tokens=Tokens(4, 2), target=other,
        )  # fmt: skip
    assert not (tmp_path / "out" / "config.json").exists()
