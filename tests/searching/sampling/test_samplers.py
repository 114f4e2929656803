"""All samplers by one contract."""

from __future__ import annotations

import pytest

from hwprune.records.recipe import Recipe
from hwprune.records.trial import Failure, Trial
from hwprune.searching.sampling import samplers
from hwprune.searching.sampling.posterior import Posterior
from hwprune.searching.sampling.problem import AllocationProblem
from hwprune.searching.study.store import Store
from tests.records.test_trial import measured


def context(store_):
    from tests.searching.sampling.test_knapsack import items_for

    return samplers.SamplerContext(Posterior(AllocationProblem(items_for(store_))), trials=12, space=store_.distributions())


@pytest.mark.parametrize("name", ["tpe", "knapsack", "nsga2"])
def test_same_seed_same_proposals_with_or_without_a_restart(store, tmp_path, name):
    _, opened = store

    def proposals(target, count, start):
        sampler = samplers.make(name, 0, context(target))
        found = []
        for number in range(start, start + count):
            asked = target.ask(sampler)
            found.append(asked.params)
            target.finisher.tell(asked, measured(asked.number, 0.01 * number, 1 + 0.1 * number), {})
        return found

    whole = proposals(opened(True), 12, 0)
    (tmp_path / "study.db").unlink()
    for extra in tmp_path.glob("study.db-*"):
        extra.unlink()
    halves = proposals(opened(True), 6, 0)
    halves += proposals(opened(False), 6, 6)
    assert halves == whole


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_proposes_within_the_space(name, tmp_path, store):
    space, _ = store
    one = Store(f"sqlite:///{tmp_path / 'other.db'}", space, create=True)
    sampler = samplers.make(name, 0, context(one))
    for number in range(10):
        asked = one.ask(sampler)
        assert asked.params["conv1: channels kept"] in (16, 32, 48, 64)
        one.finisher.tell(asked, measured(asked.number, 0.01 * number, 1.0 + number), {"drop": -1.0})
        stopped = one.ask(sampler)
        one.finisher.tell(stopped, Trial(stopped.number, Recipe(), "stopped", failure=Failure("screen", "beaten")), {})
