"""The best model for a time, against all models."""

from __future__ import annotations

import itertools

import pytest

from tests.language.parts import DENSE, allocator, damage, every, respond, seconds


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
    found = one.best(respond(DENSE), budget, 20)
    assert (found is None) == (not allowed)
    if found is not None:
        assert damage(found) == pytest.approx(min(allowed), abs=1e-6)
        assert respond(DENSE).expected(found) == pytest.approx(damage(found))
        assert one.answer_s(found) == pytest.approx(seconds(found)[0] + 4 * seconds(found)[1])


def test_uniform_blocks_are_alike_and_the_best_of_those():
    found = allocator(uniform=True).best(respond(DENSE), 0.2, 0)
    alike = [[places] * 3 for places in itertools.product(range(3), range(3))]
    dense = 0.6 + 4 * 0.08
    allowed = [damage(a) for a in alike if seconds(a)[0] + 4 * seconds(a)[1] <= 0.8 * dense]
    assert len(set(found)) == 1 and damage(found) == pytest.approx(min(allowed))
