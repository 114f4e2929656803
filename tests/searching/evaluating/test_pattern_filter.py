"""Which mask patterns pay: on the real runtime, and on simulated machines that are noisy in known ways."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hwprune.records.measurement import Measurement
from hwprune.searching.evaluating import pattern_filter

PATTERNS = 3


def test_masks_on_a_runtime_that_does_not_execute_them_are_measured_and_refused(evaluator):
    gains = pattern_filter.pattern_speedups(evaluator, ["unstructured", "2:4", "3:7"], 0.9)
    assert set(gains) == {"unstructured", "2:4"}  # 3:7 fits nowhere
    for gain in gains.values():
        assert gain.ci_low <= gain.value <= gain.ci_high
    assert pattern_filter.reason(Measurement(1.0, "x", 0.99, 1.01, 9)) == "no speedup on this target: measured 1.00 [0.99, 1.01]"
    assert pattern_filter.pays(Measurement(1.5, "x", 1.4, 1.6, 9)) and not pattern_filter.pays(
        Measurement(1.02, "x", 1.0, 1.04, 9)
    )


def speedup(log):
    return Measurement(math.exp(log), "x", math.exp(log) * 0.99, math.exp(log) * 1.01, 64, {"contended": 0.0})


class Machine:
    """Sessions of a pattern of a known gain on a machine that other programs use.

    What is off: the dense model, for as long as its process lives (both speedups); each session (Student's t of three degrees
    of freedom, ``sd`` its deviation); a drift while the filter runs; and spells in which others are busy, when sessions
    deviate four times as much and everything seems faster by 3 %.
    """

    def __init__(self, draw, gain, sd, load):
        self.draw, self.gain, self.sd, self.load = draw, math.log(gain), sd, load
        self.offset = draw.normal(0, 0.01)
        self.drift = draw.normal(0, 0.001)
        self.busy = draw.random() < load
        self.at = 0
        self.sessions = 0

    def one(self, gain):
        self.at += 1
        if self.draw.random() < 0.2:
            self.busy = self.draw.random() < self.load
        noise = self.draw.standard_t(3) / math.sqrt(3) * self.sd * (4 if self.busy else 1)
        return speedup(gain + self.offset + self.drift * self.at + noise + (0.03 if self.busy else 0.0))

    def session(self, number, brief):
        self.sessions += 1
        if number % 2:
            copy = self.one(0.0)
            return self.one(self.gain), copy
        return self.one(self.gain), self.one(0.0)


@pytest.mark.parametrize(("sd", "load"), [(0.01, 0.0), (0.01, 0.5), (0.02, 0.5), (0.02, 1.0)])
def test_what_brings_nothing_is_admitted_in_one_search_of_a_hundred_at_most(sd, load):
    """Of searches with three patterns, that admit any of them."""
    draw = np.random.default_rng([7, int(1000 * sd), int(10 * load)])
    searches = 1500
    sessions = 0
    admitted = 0
    for _ in range(searches):
        machines = [Machine(draw, 1.0, sd, load) for _ in range(PATTERNS)]
        judged = [pattern_filter.judge(machine.session, PATTERNS) for machine in machines]
        admitted += any(pattern_filter.pays(gain) for gain in judged)
        sessions += sum(machine.sessions for machine in machines)
    assert admitted <= 0.01 * searches
    assert sessions <= 2 * pattern_filter.FIRST_SESSIONS * PATTERNS * searches  # mostly the first look has to do


def test_what_a_copy_of_the_dense_model_shows_too_is_no_gain():
    """A dense model that lies badly in memory makes all that is measured against it 3 % faster, in every session."""
    gain = pattern_filter.judge(lambda *_: (speedup(0.030), speedup(0.029)), 1)
    assert not pattern_filter.pays(gain)
    assert gain.value == pytest.approx(math.exp(0.001))
    assert gain.conditions["copies"] == [0.029] * pattern_filter.FIRST_SESSIONS


@pytest.mark.parametrize("load", [0.0, 0.1])
def test_five_percent_are_found(load):
    draw = np.random.default_rng(11)
    found = [pattern_filter.pays(pattern_filter.judge(Machine(draw, 1.05, 0.01, load).session, PATTERNS)) for _ in range(1500)]
    assert sum(found) >= 0.9 * len(found)


def test_what_looked_good_at_first_is_looked_at_again_from_the_beginning():
    """The first look says 20 %, the sessions after it nothing."""
    seen = []

    def session(number, brief):
        seen.append(brief)
        return speedup(0.2 if brief else 0.0), speedup(0.0)

    gain = pattern_filter.judge(session, 1)
    assert not pattern_filter.pays(gain) and gain.value == pytest.approx(1.0)
    assert seen == [True] * pattern_filter.FIRST_SESSIONS + [False] * 2  # after two it can't be admitted any more


def test_one_session_may_fail_and_no_more():
    def judged(failing):
        return pattern_filter.judge(lambda number, brief: (speedup(-0.1 if number in failing else 0.05), speedup(0.0)), 2)

    first = pattern_filter.FIRST_SESSIONS
    assert pattern_filter.pays(judged([])) and pattern_filter.pays(judged([first + 4]))
    assert not pattern_filter.pays(judged([first + 4, first + 9]))


def test_more_patterns_need_more_sessions():
    counts = [pattern_filter.sessions_needed(among) for among in (1, 2, 3, 5, 10)]
    assert counts == [11, 12, 12, 13, 14]
    for among, count in zip((1, 2, 3, 5, 10), counts, strict=True):
        assert among * (count + 1) / 2**count <= pattern_filter.FALSE_ADMISSIONS


def test_the_pattern_and_the_copy_take_turns_in_going_first(evaluator, monkeypatch):
    """And what is given to the judge are the two files, each loaded anew."""
    order = []
    monkeypatch.setattr(pattern_filter, "_speedup", lambda _, path, *, brief: order.append((path.name, brief)) or speedup(0.0))
    session = pattern_filter._sessions_of(evaluator, evaluator.dense.home / "pattern.onnx")
    for number in range(2):
        session(number, brief=True)
    dense = evaluator.dense.path.name
    assert order == [("pattern.onnx", True), (dense, True), (dense, True), ("pattern.onnx", True)]


def test_a_prediction_is_asked_for_once(evaluator, monkeypatch):
    asked = []

    class Predicted:
        def candidate(self, path, *, brief):
            asked.append(path)
            return SimpleNamespace(speedup=replace(speedup(0.1), ci_low=1.05))

    monkeypatch.setattr(evaluator, "source", Predicted())
    assert pattern_filter.pays(pattern_filter.pattern_speedups(evaluator, ["unstructured"], 0.9)["unstructured"])
    assert len(asked) == 1
