"""The best model for a time, against all models."""

from __future__ import annotations

import itertools

import pytest

from hwprune.language.phase_prices import Prices
from tests.language.parts import DENSE, SAVED, allocator, damage, every, respond, seconds


def test_sizes_are_limits_too():
    """Each group of keys and values takes 100 bytes of a token, an MLP's half 7 of the file's."""
    saved = {**SAVED, "cache": {"attention-1": 100, "attention-0": 200}, "size": {"mlp-32": 7, "mlp-0": 14}}
    prices = Prices({"prefill": 0.6, "decode": 0.08, "cache": 600, "size": 100}, saved)
    for limits in ({"cache": 300.0}, {"size": 80.0}, {"cache": 500.0, "size": 93.0}):
        found = allocator(prices=prices, limits=limits).best(respond(DENSE), 0.05, 20)
        cache = 600 - sum(100 * a for a, _ in found)
        size = 100 - sum(7 * m for _, m in found)
        assert cache <= limits.get("cache", 600) and size <= limits.get("size", 100)
        allowed = [
            damage(one) for one in every()
            if 600 - sum(100 * a for a, _ in one) <= limits.get("cache", 600)
            and 100 - sum(7 * m for _, m in one) <= limits.get("size", 100) and allocator().saved(one) >= 0.05
        ]  # fmt: skip
        assert damage(found) == pytest.approx(min(allowed))
    assert allocator(prices=prices, limits={"size": 78.0}).plain() == []  # halves of all MLPs save 21 bytes
    assert allocator(prices=prices, limits={"size": 1.0}).best(respond(DENSE), 0.05, 20) is None


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
