"""The program against all models, where there are few enough to try them all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwprune.language import response_program
from hwprune.language.response_program import FORBIDDEN, Needs, best_alike, least_divergence
from hwprune.language.word_responses import Responses

COUNTS, DEPTH = (2, 3), 4


def problem(seed, base=((0, 1),) * DEPTH):
    """A quadratic whose changes interfere, and savings that grow with the place."""
    random = np.random.default_rng(seed)
    rows = len(base) * sum(COUNTS)
    features = random.normal(0, 0.3, (rows, 40)) + 0.2 * random.normal(0, 0.3, 40)
    linear, saved = random.normal(0.02, 0.05, rows), np.zeros((2, rows))
    empty = Responses(base, 0.5, linear, features @ features.T, COUNTS)
    for index, places in enumerate(base):
        for part, place in enumerate(places):
            row = empty.row(index, part, place)
            linear[row], features[row] = 0, 0
            for other in range(COUNTS[part]):
                saved[:, empty.row(index, part, other)] = other * random.uniform(0.5, 1.5, 2)
    return Responses(base, 0.5, linear, features @ features.T / 40, COUNTS), saved


def every():
    return itertools.product(itertools.product(range(COUNTS[0]), range(COUNTS[1])), repeat=DEPTH)


def test_what_is_expected_is_written_out(seed=0):
    near, _ = problem(seed)
    allocation = [(1, 2), (0, 1), (0, 0), (1, 1)]
    rows = [0 + 1, 0 + 2 + 2, 10 + 2 + 0, 15 + 1]  # of what differs from the base
    by_hand = 0.5 + sum(near.linear[row] for row in rows)
    by_hand += sum(near.curvature[a, b] for a in rows for b in rows) / 2
    assert near.expected(allocation) == pytest.approx(by_hand)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_best_of_all_models_is_found_or_nearly(seed, share):
    near, saved = problem(seed)
    most = saved[:, [near.row(i, p, COUNTS[p] - 1) for i in range(DEPTH) for p in (0, 1)]].sum(1)
    needs = Needs(saved, share * most)
    allowed = {
        allocation: near.expected(allocation) for allocation in every()
        if (saved[:, near.rows(allocation)].sum(1) >= needs.least - 1e-12).all()
    }  # fmt: skip
    found = least_divergence(near, needs, 20)
    assert found is not None and tuple(found) in allowed
    better = sum(value < near.expected(found) - 1e-9 for value in allowed.values())
    assert better <= max(3, 0.02 * len(allowed))  # pairs of changes can't leave every valley


def test_most_of_the_time_it_is_the_very_best():
    best = 0
    for seed in range(12):
        near, saved = problem(seed)
        needs = Needs(saved, 0.5 * saved[:, [near.row(i, p, COUNTS[p] - 1) for i in range(DEPTH) for p in (0, 1)]].sum(1))
        least = min(near.expected(one) for one in every() if (saved[:, near.rows(one)].sum(1) >= needs.least - 1e-12).all())
        best += near.expected(least_divergence(near, needs, 20)) <= least + 1e-9
    assert best >= 8


def test_what_can_not_be_saved_is_no_model():
    near, saved = problem(0)
    assert least_divergence(near, Needs(saved, saved.sum(1) * 9), 5) is None
    assert best_alike(near, Needs(saved, saved.sum(1) * 9)) is None


def test_few_pairs_stay_near_the_model():
    near, saved = problem(3)
    needs = Needs(saved, saved[:, near.rows(near.base)].sum(1))
    assert sum(a != b for a, b in zip(least_divergence(near, needs, 0), near.base, strict=True)) <= sum(
        a != b for a, b in zip(least_divergence(near, needs, 20), near.base, strict=True)
    )
    assert near.expected(least_divergence(near, needs, 20)) <= near.expected(least_divergence(near, needs, 1)) + 1e-9
    one = least_divergence(near, needs, 1)
    assert (saved[:, near.rows(one)].sum(1) >= needs.least - 1e-12).all()


def test_what_one_and_two_changes_cost_is_what_the_models_differ_by():
    near, _ = problem(2)
    start = [(1, 0), (0, 2), (0, 1), (1, 1)]
    rows = np.array(near.rows(start))
    moves, costs = response_program._costs(near, rows, near.linear, near.curvature)
    both = response_program._pair_costs(moves, costs, near.curvature)
    assert len(costs) == DEPTH * (sum(COUNTS) - 2)

    def changed(*places):
        found = list(rows)
        for place in places:
            found[moves.part[place]] = moves.new[place]
        return near.expected(response_program._allocation(near, np.array(found)))

    for first in range(len(costs)):
        assert costs[first] == pytest.approx(changed(first) - near.expected(start))
        for second in range(len(costs)):
            if moves.part[first] == moves.part[second]:
                assert both[first, second] == FORBIDDEN
            else:
                assert both[first, second] == pytest.approx(changed(first, second) - near.expected(start))


def test_pairs_are_counted():
    gains = []
    for seed in range(6):
        near, saved = problem(seed, ((0, 1),) * 12)
        near.linear[:] += 0.3 * saved[0] - 0.3 * np.repeat(
            saved[0, near.rows(near.base)], [2, 3] * 12
        )  # what saves more costs more
        needs = Needs(saved[:1], 0.98 * saved[:1, near.rows(near.base)].sum(1))
        one, many = (near.expected(least_divergence(near, needs, pairs)) for pairs in (1, 20))
        gains.append(one - many)
    assert min(gains) >= -1e-9 and max(gains) > 1e-3


def test_attention_that_costs_more_is_cut_less():
    near, saved = problem(5)
    needs = Needs(saved, 0.4 * saved.sum(1))
    cheap, dear = (least_divergence(near, needs, 20, attention) for attention in (0.01, 100.0))
    assert sum(a for a, _ in dear) < sum(a for a, _ in cheap)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_that_are_alike_are_the_best_of_those(seed):
    near, saved = problem(seed, base=((0, 0),) * DEPTH)
    needs = Needs(saved, 0.3 * saved.sum(1) / 2)
    allowed = [[places] * DEPTH for places in itertools.product(range(COUNTS[0]), range(COUNTS[1]))]
    allowed = [one for one in allowed if (saved[:, near.rows(one)].sum(1) >= needs.least - 1e-12).all()]
    assert near.expected(best_alike(near, needs)) == pytest.approx(min(near.expected(one) for one in allowed))
