"""Latencies that nobody expected are measured again."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from hwprune.latency.paired import Paired, combine_one
from hwprune.latency.source import Measured, Source
from hwprune.records.measurement import Measurement
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
    assert trial.speedup.value == pytest.approx(1 / math.sqrt(0.5 * 0.51))  # those that agree, not their median with 0.2
    answers.clear()
    assert evaluator.measure(scored, Expectation({"ratio": 0.2, "ratio_sd": 0.01})).speedup.value == pytest.approx(5)
    assert len(answers) == 1


def session(ratio, half=0.04):
    """One session of a candidate whose dense model takes 2 ms."""
    speedup = Measurement(ratio, "x", ratio * math.exp(-half), ratio * math.exp(half), 16, {"clock": "thread_cpu"})
    return Paired(speedup, Measurement(0.123, "s", 0.12, 0.13, 16, {"wall_s": 0.123, "dense_s": 0.002}))


class Sessions(Source):
    """Gives ratios one after another."""

    label = "measured"

    def __init__(self, ratios):
        self.left = list(ratios)

    def dense(self, path):
        raise NotImplementedError

    def candidate(self, path, *, brief=False):
        return session(self.left.pop(0))


def measured_again(ratios):
    """What a timer makes of sessions of which the first one is not believed."""
    timer = CandidateTimer(SimpleNamespace(load=lambda *args: None, combine=combine_one), Sessions(ratios))
    return timer.measure(Path("model.onnx"), Expectation({"ratio": 10.0, "ratio_sd": 0.01}))


@pytest.mark.parametrize(
    ("ratios", "speedup", "again", "count"),
    [
        ((2.0, 2.04), math.sqrt(2.0 * 2.04), 1, 2),
        ((3.0, 2.0, 2.04), math.sqrt(2.0 * 2.04), 2, 2),
        ((2.0, 3.0, 2.04), math.sqrt(2.0 * 2.04), 2, 2),
        ((2.0, 2.2, 2.1), (2.0 * 2.2 * 2.1) ** (1 / 3), 2, 3),  # the third one agrees with both
        ((2.0, 4.0, 3.0), 3.0, 2, 1),  # nobody agrees with anybody
    ],
)
def test_sessions_that_agree_are_averaged(ratios, speedup, again, count):
    found = measured_again(ratios)
    assert found.ratio == pytest.approx(speedup)
    assert found.again == again
    half = 0.04 / math.sqrt(count)  # as of independent sessions
    assert (found.speedup.ci_low, found.speedup.ci_high) == pytest.approx((speedup * math.exp(-half), speedup * math.exp(half)))
    if count > 1:
        assert found.latency.value == pytest.approx(0.002 / speedup)
        assert (found.latency.ci_low, found.latency.ci_high) == pytest.approx(
            (0.002 / found.speedup.ci_high, 0.002 / found.speedup.ci_low)
        )


def test_what_is_measured_again_is_unbiased():
    """Sessions differ by 1 %; the faster of two would be 0.56 % too fast."""
    draw = random.Random(0)
    found = [measured_again([math.exp(draw.gauss(0, 0.01)) for _ in range(3)]).ratio for _ in range(4000)]
    assert abs(sum(found) / len(found) - 1) < 0.0005
