"""Latencies that nobody expected are measured again."""

from __future__ import annotations

import pytest

from hwprune.latency.source import Measured, Source
from hwprune.searching.evaluating.early_stopping import Expectation
from hwprune.searching.evaluating.timing import CandidateTimer
from tests.searching.helpers import recipe_of


def test_a_latency_that_nobody_expected_is_measured_again(evaluator, monkeypatch):
    scored = evaluator.score(92, recipe_of(evaluator, 1), "test")
    answers, true = [], evaluator.source

    def candidate(path, brief=False, ratios=(0.2, 0.5, 0.51)):
        value = 1 / ratios[len(answers)]
        answers.append(value)
        base = Measured.candidate(true, path)
        return base.with_speedup(value, value * 0.99, value * 1.01)

    class Liar(Source):
        label = "measured"
        dense = true.dense

        def candidate(self, path, brief=False):
            return candidate(path)

    monkeypatch.setattr(evaluator, "timer", CandidateTimer(evaluator.bench, Liar()))
    trial = evaluator.measure(scored, Expectation({"ratio": 0.5, "ratio_sd": 0.01}))
    assert len(answers) == 3  # 0.2 is not believed; the second says 0.5, and the third settles it
    assert trial.speedup.value == pytest.approx(1 / 0.5)
    answers.clear()
    assert evaluator.measure(scored, Expectation({"ratio": 0.2, "ratio_sd": 0.01})).speedup.value == pytest.approx(5)
    assert len(answers) == 1
