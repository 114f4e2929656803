"""Knapsacks against brute force, and the study with a machine that answers by a formula."""

from __future__ import annotations

import itertools
import json

import optuna
import pytest

from hwprune.errors import CandidateFailure, UsageError
from hwprune.language.part_choices import choices_for
from hwprune.language.phase_prices import Prices
from hwprune.language.phase_study import Allocator, Bend, PhaseStudy
from hwprune.language.trial_scores import Score
from hwprune.latency.paired import Paired
from hwprune.records.measurement import Measurement
from hwprune.streaming.phases import Tokens
from hwprune.streaming.sweep_plan import SweepPlan

CHOICES = choices_for({"neuron": 64, "kv": 2}, SweepPlan((), "obs", "obs", multiple=32), "default", {})
SAVED = {
    "prefill": {"attention-1": 0.01, "attention-0": 0.03, "mlp-32": 0.05, "mlp-0": 0.08},
    "decode": {"attention-1": 0.004, "attention-0": 0.011, "mlp-32": 0.002, "mlp-0": 0.004},
}
PRICES = Prices({"prefill": 0.6, "decode": 0.08}, SAVED)
DAMAGES = [
    {"attention-1": 0.02 * (i + 1), "attention-0": 0.1 / (i + 1), "mlp-32": 0.03 + 0.01 * i, "mlp-0": 0.3 - 0.05 * i}
    for i in range(3)
]
TOKENS = Tokens(16, 4)


def allocator(**more):
    limits = more.pop("limits", {})
    return Allocator(CHOICES, DAMAGES, PRICES, TOKENS, limits, **more)


def every():
    return itertools.product(itertools.product(range(3), range(3)), repeat=3)


def seconds(allocation):
    left = {"prefill": 0.6, "decode": 0.08}
    for attention, mlp in allocation:
        for phase in left:
            left[phase] -= SAVED[phase].get(["", "attention-1", "attention-0"][attention], 0)
            left[phase] -= SAVED[phase].get(["", "mlp-32", "mlp-0"][mlp], 0)
    return left["prefill"], left["decode"]


def damage(allocation):
    total = 0.0
    for index, (attention, mlp) in enumerate(allocation):
        found = DAMAGES[index]
        total += [0, found["attention-1"], max(found["attention-1"], found["attention-0"])][attention]
        total += [0, found["mlp-32"], max(found["mlp-32"], found["mlp-0"])][mlp]
    return total


@pytest.mark.parametrize("budget", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("limits", [{}, {"decode": 0.075}, {"prefill": 0.5, "decode": 0.07}])
def test_the_least_damage_of_all_allocations_that_keep_budget_and_limits(budget, limits):
    one = allocator(limits=limits)
    dense = 0.6 + 4 * 0.08
    allowed = []
    for allocation in every():
        prefill, decode = seconds(allocation)
        kept = {"prefill": prefill, "decode": decode}
        if prefill + 4 * decode <= (1 - budget) * dense + 1e-12 and all(kept[p] <= 0.98 * s + 1e-12 for p, s in limits.items()):
            allowed.append(damage(allocation))
    found = one.best(budget, Bend())
    assert (found is None) == (not allowed)
    if found is not None:
        assert damage(found) == pytest.approx(min(allowed), abs=1e-6)
        assert one.damage(found) == pytest.approx(damage(found))
        assert one.answer_s(found) == pytest.approx(seconds(found)[0] + 4 * seconds(found)[1])


def test_uniform_blocks_are_alike_and_the_best_of_those():
    found = allocator(uniform=True).best(0.2, Bend())
    alike = [[places] * 3 for places in itertools.product(range(3), range(3))]
    dense = 0.6 + 4 * 0.08
    allowed = [damage(a) for a in alike if seconds(a)[0] + 4 * seconds(a)[1] <= 0.8 * dense]
    assert len(set(found)) == 1 and damage(found) == pytest.approx(min(allowed))


def test_bends_move_what_is_cut():
    plain = allocator().best(0.25, Bend())
    dear = allocator().best(0.25, Bend(attention=100.0))
    late = allocator().best(0.25, Bend(tilt=-8.0))
    assert sum(a for a, _ in dear) <= sum(a for a, _ in plain)
    assert sum(late[2]) >= sum(plain[2]) and late != plain


def measured(allocation):
    found = {}
    for phase, dense, value in zip(("prefill", "decode"), (0.6, 0.08), seconds(allocation), strict=True):
        latency = Measurement(value, "s", value, value, 3, {"dense_s": dense})
        found[phase] = Paired(Measurement(dense / value, "x", dense / value, dense / value, 3, {"clock": "wall"}), latency)
    return found


def score(allocation):
    return Score(damage(allocation) * 1.3, 10 + damage(allocation))


def test_budgets_end_where_models_are_ruined(tmp_path):
    ruinous = [{name: 20 * value for name, value in one.items()} for one in DAMAGES]
    one = Allocator(CHOICES, ruinous, PRICES, TOKENS, {})
    found = one.most_useful(0.4)
    assert found < 0.4 and one.damage(one.best(found, Bend())) <= 1.5
    higher = found + 0.35 / 11
    assert one.damage(one.best(higher, Bend())) > 1.5
    assert allocator().most_useful(0.4) == 0.4


def test_what_one_would_try_without_a_search_is_tried_first(tmp_path):
    study = PhaseStudy(tmp_path, allocator(), score, measured, seed=0)
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

    study = PhaseStudy(tmp_path, allocator(), score, measure, seed=0)
    study.run(16, lambda *_: None)
    assert len(study.finished()) == 16 and len(asked) == len(set(asked))
    front = study.front()
    assert [one.values[1] for one in front] == sorted(one.values[1] for one in front)
    for one in front:
        allocation = [tuple(places) for places in json.loads(one.user_attrs["allocation"])]
        prefill, decode = seconds(allocation)
        assert one.values == pytest.approx([1.3 * damage(allocation), 0.92 / (prefill + 4 * decode)])
        assert not any(o.values[0] < one.values[0] and o.values[1] > one.values[1] for o in study.study.best_trials)
    again = PhaseStudy(tmp_path, allocator(), score, measure, seed=0)
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

    study = PhaseStudy(tmp_path, allocator(), score, measure, seed=0)
    study.run(14, lambda *_: None)
    complete = [one for one in study.finished() if one.state == optuna.trial.TrialState.COMPLETE]
    first = complete[0].user_attrs
    assert first["predicted"] == first["added_up"] and first["predicted"]["decode"] > first["speedups"]["decode"][0]
    for one in complete[6:]:
        told = one.user_attrs
        if told["allocation"] not in [other.user_attrs["allocation"] for other in complete[:6]]:
            assert told["predicted"]["prefill"] == pytest.approx(told["speedups"]["prefill"][0], rel=1e-6)
            assert one.values[1] >= 1 / (1 - one.params["budget"]) - 1e-9


def test_what_was_measured_beyond_a_limit_is_not_on_the_front(tmp_path):
    """The table promises that decode keeps 0.07 s; measured, every second model needs more."""
    limited, count = allocator(limits={"decode": 0.07}), itertools.count()

    def measure(allocation):
        found = measured(allocation)
        if next(count) % 2:
            ratio = Measurement(0.08 / 0.075, "x", 1.0, 1.1, 3, {"clock": "wall"})
            found["decode"] = Paired(ratio, Measurement(0.075, "s", 0.07, 0.08, 3, {"dense_s": 0.08}))
        return found

    study = PhaseStudy(tmp_path, limited, score, measure, seed=0)
    study.run(10, lambda *_: None)
    ratios = [one.user_attrs["speedups"]["decode"][0] for one in study.finished() if one.values]
    assert any(0.08 / ratio > 0.07 for ratio in ratios)
    assert study.front() and all(0.08 / one.user_attrs["speedups"]["decode"][0] <= 0.07 for one in study.front())


def test_a_trial_that_a_kill_has_ended_is_run_anew(tmp_path):
    def dies(_allocation):
        raise KeyboardInterrupt

    study = PhaseStudy(tmp_path, allocator(), score, dies, seed=0)
    with pytest.raises(KeyboardInterrupt):
        study.run(3, lambda *_: None)
    again = PhaseStudy(tmp_path, allocator(), score, measured, seed=0)
    again.run(12, lambda *_: None)  # the others that were waiting, and then this one
    states = [one.state for one in again.study.trials]
    assert states.count(optuna.trial.TrialState.COMPLETE) == 11 and states[0] == optuna.trial.TrialState.FAIL
    first = again.study.trials[0].params["budget"]
    assert any(one.params.get("budget") == first for one in again.study.trials[1:])


def test_a_model_that_does_not_run_is_a_failed_trial(tmp_path):
    def fails(_allocation):
        raise CandidateFailure("measure", "no kernel")

    study = PhaseStudy(tmp_path, allocator(), score, fails, seed=0)
    study.run(2, lambda *_: None)
    assert [one.user_attrs["failure"] for one in study.finished()] == ["no kernel"] * 2 and not study.front()


def test_a_model_that_nothing_makes_faster_is_told(tmp_path):
    nothing = Prices({"prefill": 0.6, "decode": 0.08}, {phase: dict.fromkeys(SAVED[phase], 0.0) for phase in SAVED})
    with pytest.raises(UsageError, match="saves 5 % of its time"):
        PhaseStudy(tmp_path, Allocator(CHOICES, DAMAGES, nothing, TOKENS, {}), score, measured, 0)
