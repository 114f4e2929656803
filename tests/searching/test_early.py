"""Stopping early, measuring again, constraints, and which mask patterns pay: on the real runtime where it matters."""

from __future__ import annotations

import dataclasses

import pytest

from hwprune.errors import CandidateFailure
from hwprune.latency.bench import Bench
from hwprune.latency.paired import Settings
from hwprune.latency.source import Measured, Source
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.records.measurement import Measurement
from hwprune.searching.constraints import REPAIR, Constraints
from hwprune.searching.evaluating import pattern_filter
from hwprune.searching.evaluating.dense import EXAMPLE
from hwprune.searching.evaluating.early_stopping import Expectation, FrontMember
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.evaluating.scored import ScoredCandidate
from hwprune.searching.evaluating.timing import CandidateTimer
from hwprune.searching.sampling.search_model import front_members, limits_of
from hwprune.searching.space import fitting, space_file
from tests.conftest import tiny_workload
from tests.test_values import measured


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    run = tmp_path_factory.mktemp("early") / "run"
    target = targets.load("cpu")
    workload = tiny_workload("top1")
    # Many small batches, so that the first of them are a screen.
    batches = [pair for _ in range(20) for pair in workload.validation]
    pruner = Pruner(dataclasses.replace(workload, validation=batches))
    with Bench(target) as bench:
        made = Evaluator(pruner, bench, Measured(bench, run / "baseline" / EXAMPLE, Settings(limit_s=0.05)), target, run)
        made.dense.prepare(made.source)
        yield made


def recipe_of(evaluator, level):
    space = fitting.build(space_file.load("structured"), evaluator.pruner, evaluator.target, "avx512")
    return space.recipe({"level:conv1.weight:0": level, "method:conv1.weight:0": "l2"})


def test_a_candidate_that_others_beat_is_stopped_on_the_screen_and_leaves_no_files(evaluator):
    assert evaluator.dense.validation.screen == 5  # 100 of 1,200 examples
    advice = Expectation({"ratio": 0.5, "ratio_sd": 0.01, "divergence": 1.0, "drop": 0.1}, (FrontMember(7, 0.4, 0.0),))
    trial = evaluator.score(90, recipe_of(evaluator, 3), "test", advice)
    assert trial.state == "stopped"
    assert trial.failure.stage == "screen"
    assert trial.divergence.samples == 100
    assert "trial 7" in trial.failure.reason
    assert not evaluator.files.folder(90).exists()
    assert type(trial).from_table  # it survives the study like any other


@pytest.mark.parametrize(
    "advice",
    [
        Expectation(),
        Expectation({"ratio": 0.5, "ratio_sd": 0.05}, (FrontMember(7, 0.4, 0.0),)),  # it may be as fast as 0.35
        Expectation({"ratio": 0.5, "ratio_sd": 0.01}, (FrontMember(7, 0.4, 99.0),)),  # the rival may be further from dense
    ],
)
def test_one_that_may_be_of_use_goes_on(evaluator, advice):
    scored = evaluator.score(91, recipe_of(evaluator, 3), "test", advice)
    assert isinstance(scored, ScoredCandidate)
    assert scored.divergence.samples == 1200
    assert ScoredCandidate.from_json(91, scored.to_json()) == scored
    assert evaluator.measure(scored).measured


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


def test_front_members_are_the_front_by_divergence_and_ratio():
    def one(number, kl, speedup):
        return dataclasses.replace(measured(number, 0.1, speedup), divergence=Measurement(kl, "nats", kl, kl, 100))

    found = front_members([one(0, 0.5, 3.0), one(1, 0.6, 2.0), one(2, 0.1, 1.5), one(3, 0.3, 2.5)])
    assert [r.number for r in found] == [0, 3, 2]


def test_masks_on_a_runtime_that_does_not_execute_them_are_measured_and_refused(evaluator):
    gains = pattern_filter.pattern_speedups(evaluator, ["unstructured", "2:4", "3:7"], 0.9)
    assert set(gains) == {"unstructured", "2:4"}  # 3:7 fits nowhere
    for gain in gains.values():
        assert gain.ci_low <= gain.value <= gain.ci_high
    assert pattern_filter.reason(Measurement(1.0, "x", 0.99, 1.01, 9)) == "no speedup on this target: measured 1.00 [0.99, 1.01]"
    assert pattern_filter.pays(Measurement(1.5, "x", 1.4, 1.6, 9)) and not pattern_filter.pays(
        Measurement(1.02, "x", 1.0, 1.04, 9)
    )


def test_measured_patterns_overrule_the_profile():
    pruner, target = Pruner(tiny_workload()), targets.load("cpu")
    space = fitting.build(
        space_file.load("mixed"), pruner, target, "avx512", refused={"2:4": None, "4:8": "no speedup: measured"}
    )
    assert any("2:4" in unit_space.levels for unit_space in space.units)
    assert ("4:8", "no speedup: measured") in space.left_out


def test_constraints_in_numbers_and_words():
    limits = Constraints(max_drop=0.02, min_speedup=2.0, max_latency_s=1e-3, max_size=5000)
    assert limits.met(0.02, 2.0, 1e-3, 5000)
    for wrong in ((0.03, 2.0, 1e-3, 5000), (0.02, 1.9, 1e-3, 5000), (0.02, 2.0, 1.1e-3, 5000), (0.02, 2.0, 1e-3, 5001)):
        assert not limits.met(*wrong)
    assert limits.text() == "drop <= 0.02, speedup >= 2, latency <= 1.00 ms, size <= 5.00 kB"
    assert not Constraints() and limits
    loose = Constraints(max_drop=0.02).loosened(repaired=True)
    assert loose.max_drop == pytest.approx(0.02 * REPAIR + 0.01)
    assert Constraints(max_drop=1.0).loosened(dense=40.0).max_drop == pytest.approx(1.4)  # perplexity


def test_the_nearest_is_named_with_what_it_misses():
    trials = [measured(0, 0.05, 3.0), measured(1, 0.02, 1.5), measured(2, 0.3, 4.0)]
    text = Constraints(max_drop=0.01, min_speedup=1.4).nearest(trials, lambda t: f"trial {t.number}")
    assert "Nearest: trial 1; it misses drop" in text
    slow = Constraints(max_drop=0.5).nearest([measured(0, 0.0, 0.9)], lambda t: f"trial {t.number}")
    assert "No candidate is faster than the dense model" in slow
    assert "could be measured" in Constraints().nearest([], lambda t: "")


def test_limits_for_the_sampler(evaluator):
    base = evaluator.dense.baseline
    limits = limits_of(Constraints(0.01, 2.0, base.latency.value / 4, base.size_bytes // 2), base, repaired=True)
    assert limits.max_drop == pytest.approx(0.01 * REPAIR)
    assert limits.max_ratio == pytest.approx(0.25)
    assert limits.min_saved == {"file": base.size_bytes - base.size_bytes // 2}
    assert not limits_of(Constraints(max_size=2 * base.size_bytes), base).min_saved
    trained = limits_of(Constraints(0.01), base, repaired=True, trained=True)
    assert trained.max_drop > limits.max_drop  # training brings back more than compensation does


def test_a_file_that_computes_something_else_is_never_a_finalists(evaluator, monkeypatch):
    from hwprune.searching.evaluating import scorer as module

    trial = evaluator.measure(evaluator.score(93, recipe_of(evaluator, 2), "test"))
    before = (evaluator.files.folder(93) / "model.onnx").read_bytes()
    monkeypatch.setitem(module.PARITY_TOLERANCES, "fp32", -1.0)
    with pytest.raises(CandidateFailure, match="differ from PyTorch"):
        evaluator.refine(trial, "obs+batchnorm+sequential")
    assert (evaluator.files.folder(93) / "model.onnx").read_bytes() == before
    monkeypatch.undo()
    better = evaluator.refine(trial, "obs+batchnorm+sequential")
    assert better is None or better.divergence.value < trial.divergence.value


def test_on_a_machine_that_others_use_a_pattern_must_pay_by_more():
    from hwprune.records.measurement import Measurement

    for contended, low, expected in ((0.0, 1.05, True), (1.0, 1.05, False), (1.0, 1.4, True), (0.0, 1.0, False)):
        gain = Measurement(low + 0.02, "x", low, low + 0.04, 9, {"contended": contended})
        assert pattern_filter.pays(gain) is expected


def test_a_pattern_that_pays_by_chance_is_not_searched(evaluator, monkeypatch):
    """On a busy machine one of a few patterns may look faster: it has to be faster twice."""
    from hwprune.records.measurement import Measurement

    measured_in_turn = {
        "lucky": [Measurement(1.2, "x", 1.1, 1.3, 4), Measurement(1.0, "x", 0.95, 1.05, 4)],
        "real": [Measurement(1.2, "x", 1.1, 1.3, 4)] * 2,
    }
    for kind, expected in (("lucky", False), ("real", True)):
        left = list(measured_in_turn[kind])
        monkeypatch.setattr(pattern_filter, "_measured", lambda *_, left=left: left.pop(0))
        assert pattern_filter.pays(pattern_filter.pattern_speedups(evaluator, ["unstructured"], 0.9)["unstructured"]) is expected
