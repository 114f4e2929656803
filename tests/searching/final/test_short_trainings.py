"""Trials that are trained for a while during a search, and what the search learns by it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from hwprune.errors import CandidateFailure
from hwprune.records.measurement import Measurement
from hwprune.recovery.plan import Plan
from hwprune.searching.final import short_trainings
from hwprune.searching.final.short_trainings import AT_ONCE, MILESTONES, ShortTrainings, to_probe
from hwprune.searching.sampling.problem import Limits
from hwprune.searching.study.attributes import TRAINED_DROPS
from tests.records.test_trial import measured

LIMITS = Limits(reference_drop=0.1)


def trial(number, kl, drop, speedup):
    one = dataclasses.replace(measured(number, drop, speedup), divergence=Measurement(kl, "nats", kl, kl, 1000))
    half = 0.005
    return dataclasses.replace(one, paired_drop=Measurement(drop, "top1", drop - half, drop + half, 1000))


def front(count=40):
    kl = np.geomspace(0.001, 5.0, count)
    return [trial(n, float(k), float(min(0.3 * k, 0.9)), 1.1 + 0.1 * n) for n, k in enumerate(kl)]


class Fake:
    """A store and an evaluator whose trainings bring every candidate back to a tenth of its drop."""

    def __init__(self, monkeypatch, trials, plan="distill:2"):
        self.attributes, self.trained, self.stages = {}, [], []
        self.trials = {str(t.recipe.digest) + str(t.number): t for t in trials}
        metric = SimpleNamespace(drop=lambda dense, value: dense - value)
        dense = SimpleNamespace(baseline=SimpleNamespace(metric=SimpleNamespace(value=1.0)))
        pruner = SimpleNamespace(prune=lambda recipe: SimpleNamespace(number=recipe, masks=None, module=None),
                                 workload=None, graph=SimpleNamespace(module=None))  # fmt: skip
        self.evaluator = SimpleNamespace(metric=metric, dense=dense, pruner=pruner)
        self.by_number = {t.number: t for t in trials}
        store = SimpleNamespace(
            read=self.attributes.get, write=self.attributes.__setitem__,
            trials=lambda **_: [dataclasses.replace(t, recipe=t.number) for t in trials],
        )  # fmt: skip
        self.store = store
        progress = SimpleNamespace(stage=self.stages.append)
        monkeypatch.setattr(short_trainings, "search_rate", lambda *_: 0.01)
        monkeypatch.setattr(short_trainings, "recover", self.recover)
        self.plan = Plan("distill", 2.0) if plan == "distill:2" else Plan("gradual", 2.0)
        self.make = lambda: ShortTrainings(self.evaluator, store, self.plan, progress)

    def recover(self, _pruner, candidate, plan):
        assert plan.epochs == pytest.approx(0.2) and plan.rate == 0.01
        self.trained.append(candidate.number)
        found = self.by_number[candidate.number]
        after = SimpleNamespace(value=1.0 - found.drop / 10)
        return SimpleNamespace(seconds=2.0, outcome=SimpleNamespace(after=after))


def test_milestones_train_a_few_and_tell_the_search(monkeypatch):
    trials = front()
    fake = Fake(monkeypatch, trials)
    short = fake.make()
    short.after_trial(trials[: MILESTONES[0] - 1], LIMITS)
    assert not fake.trained
    mixed = trials[::5]  # eight of them, from harmless to ruined
    short.after_trial(mixed, LIMITS)
    first = list(fake.trained)
    assert 1 <= len(first) <= AT_ONCE
    told = fake.attributes[TRAINED_DROPS]
    assert {int(n) for n in told} == set(first)
    for number, (drop, error) in told.items():
        assert drop == pytest.approx(fake.by_number[int(number)].drop / 10)
        assert error == pytest.approx(0.005 / 1.96, rel=1e-3)
    fake.make().after_trial(trials, LIMITS)  # resumed: nobody twice
    assert len(fake.trained) == len(set(fake.trained)) > len(first)
    assert short_trainings.SHORT_TRAINING + " distill:2" in fake.attributes


def test_a_milestone_counts_once(monkeypatch):
    """Trials that could teach something are left; they wait for the next one."""
    trials = [trial(n, 0.1 * (n + 1), 0.03 * (n + 1), 1.2 + 0.1 * n) for n in range(MILESTONES[0])]
    fake = Fake(monkeypatch, trials)
    short = fake.make()
    for _ in range(3):
        short.after_trial(trials, LIMITS)
        assert len(fake.trained) == AT_ONCE


def test_what_the_final_round_trains_teaches_nothing_that_a_resumed_search_would_choose_by(monkeypatch):
    trials = front()
    fake = Fake(monkeypatch, trials)
    short = fake.make()
    short.after_trial(trials, LIMITS)
    before, told = short.taught, fake.attributes[TRAINED_DROPS]
    left = [t for t in trials if t.number not in before][:2]
    for t in left:
        assert short.metric(t, "choosing") is not None
    again = ShortTrainings.of_search(fake.evaluator, fake.store, fake.plan, SimpleNamespace(stage=print))
    assert again.taught == before and fake.attributes[TRAINED_DROPS] == told
    assert len(again.drops(trials)) == len(before) + 2


def test_a_gradual_plan_says_nothing_by_a_short_training(monkeypatch):
    fake = Fake(monkeypatch, front(), "gradual:2")
    fake.make().after_trial(front(), LIMITS)
    assert not fake.trained and TRAINED_DROPS not in fake.attributes


def test_what_can_not_be_trained_is_not_tried_again_and_costs_the_search_nothing(monkeypatch):
    trials = front()
    fake = Fake(monkeypatch, trials)

    def broken(*_args):
        raise CandidateFailure("recover", "no luck")

    monkeypatch.setattr(short_trainings, "recover", broken)
    short = fake.make()
    short.after_trial(trials, LIMITS)
    assert len(short.failures) == AT_ONCE and not fake.attributes.get(TRAINED_DROPS)
    tried = set(short.failures)
    again = fake.make()
    again.after_trial(trials, LIMITS)
    assert tried < set(again.failures)


def test_a_search_that_is_resumed_with_another_plan_or_none_forgets(monkeypatch):
    trials = front()
    fake = Fake(monkeypatch, trials)
    fake.make().after_trial(trials, LIMITS)
    assert fake.attributes[TRAINED_DROPS]
    ShortTrainings.of_search(fake.evaluator, fake.store, Plan("distill", 5.0), None)
    assert fake.attributes[TRAINED_DROPS] == {}
    ShortTrainings.of_search(fake.evaluator, fake.store, fake.plan, None)
    assert fake.attributes[TRAINED_DROPS]
    assert ShortTrainings.of_search(fake.evaluator, fake.store, None, None) is None
    assert fake.attributes[TRAINED_DROPS] == {}


def test_those_are_trained_who_teach_something():
    trials = front()
    chosen = to_probe(trials, {}, LIMITS, 3, set())
    drops = [t.drop for t in chosen]
    assert len(chosen) == 3 and drops == sorted(drops)
    assert drops[0] < 0.1 < drops[-1]  # on both sides of the worst drop that matters
    assert all(0.01 <= drop <= 0.8 for drop in drops)  # neither harmless nor ruined
    others = to_probe(trials, {}, LIMITS, 3, {str(t.number) for t in chosen})
    assert not {t.number for t in others} & {t.number for t in chosen}
    slow = [dataclasses.replace(t, speedup=dataclasses.replace(t.speedup, value=0.9)) for t in trials]
    assert not to_probe(slow, {}, LIMITS, 3, set())
    # Once it is known how much training brings back, candidates that had lost far more are looked at.
    trained = {t.number: (t.drop / 20, 0.003) for t in chosen}
    farther = to_probe(trials, trained, LIMITS, 3, {str(t.number) for t in chosen})
    assert max(t.divergence.value for t in farther) > max(t.divergence.value for t in others)
