"""The study with a machine that answers by a formula."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import optuna
import pytest

from hwprune.errors import CandidateFailure, UsageError
from hwprune.language.phase_prices import Prices
from hwprune.language.phase_study import PhaseStudy
from hwprune.language.trial_scores import Score
from hwprune.language.word_responses import Responses
from hwprune.latency.paired import Paired
from hwprune.records.measurement import Measurement
from tests.language.parts import DENSE, SAVED, allocator, damage, respond, seconds


def study_of(place, one=None, seen=None, **more):
    place.mkdir(exist_ok=True)
    return PhaseStudy(place, one or allocator(), more.pop("score", score), seen or measured, more.pop("respond", respond), seed=0)


def measured(allocation):
    found = {}
    for phase, dense, value in zip(("prefill", "decode"), (0.6, 0.08), seconds(allocation), strict=True):
        latency = Measurement(value, "s", value, value, 3, {"dense_s": dense})
        found[phase] = Paired(Measurement(dense / value, "x", dense / value, dense / value, 3, {"clock": "wall"}), latency)
    return found


def score(allocation):
    return Score(damage(allocation) * 1.3, 10 + damage(allocation))


def test_budgets_end_where_models_are_ruined(tmp_path):
    """The plain model saves 0.174 of the time for 1.3 * 0.12 nats; ten times as dear, its range ends where 1.5 nats are."""
    saved = allocator().saved([(0, 1)] * 3)
    dear = study_of(tmp_path / "a", score=lambda one: Score(10 * score(one).divergence, 10))
    assert dear.study.user_attrs["most"] == pytest.approx(saved * 1.5 / (13 * damage([(0, 1)] * 3)))
    usual = study_of(tmp_path / "b")
    assert usual.study.user_attrs["most"] == pytest.approx(0.95 * allocator().most_saved())


def test_budgets_end_where_models_near_the_dense_one_are_expected_to_be_ruined(tmp_path):
    """Where there are no plain models (all of them break the limit), what is near the dense one says it."""
    one = allocator(limits={"prefill": 0.44})
    assert one.plain() == []
    asked = []

    def dear(base, draw):
        asked.append(base)
        near = respond(base)
        return Responses(near.base, near.divergence, 9 * near.linear, near.curvature, near.counts)

    study = study_of(tmp_path, one, respond=dear)
    found = one.best(respond(DENSE), study.study.user_attrs["most"], 0)
    assert asked == [DENSE] and 9 * damage(found) <= 1.5


def test_what_one_would_try_without_a_search_is_tried_first(tmp_path):
    study = study_of(tmp_path)
    study.run(1, lambda *_: None)
    (one,) = study.finished()
    assert json.loads(one.user_attrs["allocation"]) == [[0, 1]] * 3
    limited = allocator(limits={"prefill": 0.4})
    assert limited.plain() == [] and allocator().plain() == [[(0, 1)] * 3]


def test_each_trial_is_run_and_what_is_known_is_not_run_again(tmp_path):
    asked = []

    def measure(allocation):
        asked.append(json.dumps(allocation))
        return measured(allocation)

    study = study_of(tmp_path, seen=measure)
    study.run(16, lambda *_: None)
    assert len(study.finished()) == 16 and len(asked) == len(set(asked))
    front = study.front()
    assert [one.values[1] for one in front] == sorted(one.values[1] for one in front)
    for one in front:
        allocation = [tuple(places) for places in json.loads(one.user_attrs["allocation"])]
        prefill, decode = seconds(allocation)
        assert one.values == pytest.approx([1.3 * damage(allocation), 0.92 / (prefill + 4 * decode)])
        assert not any(o.values[0] < one.values[0] and o.values[1] > one.values[1] for o in study.study.best_trials)
    again = study_of(tmp_path, seen=measure)
    before = len(asked)
    again.run(16, lambda *_: None)
    assert len(asked) == before


def test_a_table_that_promises_too_much_is_corrected_by_whole_models(tmp_path):
    """Models save four fifths of what their choices add up to: the later ones are predicted right, and keep their budget."""

    def measure(allocation):
        found = {}
        for phase, dense, value in zip(("prefill", "decode"), (0.6, 0.08), seconds(allocation), strict=True):
            true = dense - 0.8 * (dense - value)
            latency = Measurement(true, "s", true, true, 3, {"dense_s": dense})
            found[phase] = Paired(Measurement(dense / true, "x", dense / true, dense / true, 3, {"clock": "wall"}), latency)
        return found

    study = study_of(tmp_path, seen=measure)
    study.run(14, lambda *_: None)
    complete = [one for one in study.finished() if one.state == optuna.trial.TrialState.COMPLETE]
    first = complete[0].user_attrs
    assert first["predicted"] == first["added_up"] and first["predicted"]["decode"] > first["speedups"]["decode"][0]
    for one in complete[6:]:
        told = one.user_attrs
        if told["allocation"] not in [other.user_attrs["allocation"] for other in complete[:6]]:
            true = told["speedups"]["prefill"][0]
            assert abs(told["predicted"]["prefill"] - true) < 0.3 * abs(told["added_up"]["prefill"] - true)
            assert one.values[1] >= 0.97 / (1 - one.params["budget"])


def test_what_was_measured_beyond_a_limit_is_not_on_the_front(tmp_path):
    """The table promises that decode keeps 0.07 s; measured, every second model needs more."""
    limited, count = allocator(limits={"decode": 0.07}), itertools.count()

    def measure(allocation):
        found = measured(allocation)
        if next(count) % 2:
            ratio = Measurement(0.08 / 0.075, "x", 1.0, 1.1, 3, {"clock": "wall"})
            found["decode"] = Paired(ratio, Measurement(0.075, "s", 0.07, 0.08, 3, {"dense_s": 0.08}))
        return found

    study = study_of(tmp_path, limited, measure)
    study.run(10, lambda *_: None)
    ratios = [one.user_attrs["speedups"]["decode"][0] for one in study.finished() if one.values]
    assert any(0.08 / ratio > 0.07 for ratio in ratios)
    assert study.front() and all(0.08 / one.user_attrs["speedups"]["decode"][0] <= 0.07 for one in study.front())


def test_a_trial_that_a_kill_has_ended_is_run_anew(tmp_path):
    def dies(_allocation):
        raise KeyboardInterrupt

    study = study_of(tmp_path, seen=dies)
    with pytest.raises(KeyboardInterrupt):
        study.run(3, lambda *_: None)
    again = study_of(tmp_path)
    again.run(12, lambda *_: None)  # the others that were waiting, and then this one
    states = [one.state for one in again.study.trials]
    assert states.count(optuna.trial.TrialState.COMPLETE) == 11 and states[0] == optuna.trial.TrialState.FAIL
    first = again.study.trials[0].params["budget"]
    assert any(one.params.get("budget") == first for one in again.study.trials[1:])


def test_what_came_out_fast_by_chance_is_not_taken_for_fast(tmp_path):
    """Times that are 4 % off by chance, and say so: all models together know them better than each by itself."""
    random = np.random.default_rng(1)

    def noisy(allocation):
        found = measured(allocation)
        for phase, one in found.items():
            off = math.exp(random.normal(0, 0.04))
            ratio = Measurement(
                one.ratio * off, "x", one.ratio * off * math.exp(-0.08), one.ratio * off * math.exp(0.08), 3, {"clock": "wall"}
            )
            seconds = one.latency.value / off
            found[phase] = Paired(
                ratio, Measurement(seconds, "s", seconds, seconds, 3, {"dense_s": one.latency.value * one.ratio})
            )
        return found

    study = study_of(tmp_path, seen=noisy)
    study.run(40, lambda *_: None)
    alone, pooled = [], []
    for one in study._complete():
        allocation = json.loads(one.user_attrs["allocation"])
        for phase, dense, true in zip(("prefill", "decode"), (0.6, 0.08), seconds(allocation), strict=True):
            alone.append(math.log(one.user_attrs["speedups"][phase][0] * true / dense))
            pooled.append(math.log(study.estimates()[one.number][phase] * true / dense))
    assert np.square(pooled).mean() < 0.5 * np.square(alone).mean()
    front = study.front()
    assert [one.values for one in front] == sorted((one.values for one in front), key=lambda values: values[1])
    assert all(a.values[0] < b.values[0] for a, b in itertools.pairwise(front))


def test_a_model_that_is_what_it_measures_is_told_so(tmp_path):
    """Savings that don't add up at all, measured without chance: the sum of choices says nothing."""
    random = np.random.default_rng(2)
    factors = {}

    def odd(allocation):
        found = measured(allocation)
        for phase, one in found.items():
            off = factors.setdefault((phase, json.dumps(allocation)), math.exp(random.normal(0, 0.1)))
            ratio = Measurement(one.ratio * off, "x", one.ratio * off * 0.9999, one.ratio * off * 1.0001, 3, {"clock": "wall"})
            value = one.latency.value / off
            found[phase] = Paired(ratio, Measurement(value, "s", value, value, 3, {"dense_s": one.latency.value * one.ratio}))
        return found

    study = study_of(tmp_path, seen=odd)
    study.run(20, lambda *_: None)
    for number, found in study.estimates().items():
        told = next(one for one in study._complete() if one.number == number).user_attrs["speedups"]
        assert found["decode"] == pytest.approx(told["decode"][0], rel=1e-3)


def test_a_budget_is_searched_near_the_model_of_its_own_time_the_latest_of_equals(tmp_path):
    study = study_of(tmp_path)
    slow, fast = [(0, 1), (0, 0), (0, 0)], [(1, 1), (1, 1), (2, 1)]
    again = respond(slow)
    study._near = [respond(fast), respond(slow), again]
    saved = study._allocator.saved
    assert study._nearest(saved(fast) + 0.01).base == tuple(fast)
    assert study._nearest(saved(slow) - 0.01) is again


def test_a_model_that_does_not_run_is_a_failed_trial(tmp_path):
    def fails(_allocation):
        raise CandidateFailure("measure", "no kernel")

    study = study_of(tmp_path, seen=fails)
    study.run(2, lambda *_: None)
    assert [one.user_attrs["failure"] for one in study.finished()] == ["no kernel"] * 2 and not study.front()


def test_a_model_that_nothing_makes_faster_is_told(tmp_path):
    nothing = Prices({"prefill": 0.6, "decode": 0.08}, {phase: dict.fromkeys(SAVED[phase], 0.0) for phase in SAVED})
    with pytest.raises(UsageError, match="saves 5 % of its time"):
        study_of(tmp_path, allocator(prices=nothing))
