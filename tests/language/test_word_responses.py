"""Costs and curvature near a model, against derivatives of a model of transformers that is changed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwprune.language.word_responses import IMPOSSIBLE, Responder, shrunk
from hwprune.workload.text_windows import windows
from tests.language.test_part_options import by_hand, changed, words_of

BASE = ((1, 0), (0, 1), (0, 2))
NAMES = (["", "attention-1", "attention-0"], ["", "mlp-32", "mlp-16", "mlp-0"])


def named(allocation):
    return {index: [NAMES[part][place] for part, place in enumerate(places) if place] for index, places in enumerate(allocation)}


@pytest.fixture(scope="module")
def near(solved, tmp_path_factory):
    responder = Responder(solved.source, solved.texts.looked, solved.choices, solved.store, tmp_path_factory.mktemp("near"))
    return responder.near(BASE, 1)


def test_the_model_itself_is_as_far_from_dense_as_it_is(solved, near):
    assert near.base == BASE and near.expected(BASE) == near.divergence
    assert near.divergence == pytest.approx(by_hand(solved, named(BASE), solved.texts.looked[1]), rel=1e-4)


@pytest.mark.parametrize(("index", "part", "place"), [(0, 0, 0), (0, 1, 2), (1, 0, 2), (1, 1, 0), (2, 1, 3), (2, 0, 1)])
def test_costs_are_derivatives_of_the_divergence(solved, near, index, part, place):
    """A thousandth of what the choice changes in the block's output, both ways."""
    ids = solved.texts.looked[1]
    other = [list(places) for places in BASE]
    other[index][part] = place
    usual, swapped, dense = (changed(solved, named(one)) for one in (BASE, other, [(0, 0)] * 3))
    wanted = words_of(dense, ids)
    made = {}

    def keep(_module, inputs, output):
        made["inputs"], made["output"] = inputs[0], output[0] if isinstance(output, tuple) else output

    def moved(size):
        def hook(_module, inputs, output):
            found = made["change"] * size
            return (output[0] + found, *output[1:]) if isinstance(output, tuple) else output + found

        return hook

    with torch.no_grad():
        handle = usual.model.layers[index].register_forward_hook(keep)
        usual(ids, use_cache=False)
        handle.remove()
        output, inputs = made["output"], made["inputs"]
        swapped.model.layers[index].register_forward_hook(keep)
        swapped.model.layers[index].register_forward_pre_hook(lambda _module, given: (inputs, *given[1:]))
        swapped(ids, use_cache=False)
        made["change"] = made["output"] - output
        apart = {}
        for size in (0.01, -0.01):
            handle = usual.model.layers[index].register_forward_hook(moved(size))
            found = words_of(usual, ids)
            apart[size] = float((wanted.exp() * (wanted - found)).sum(-1).mean())
            handle.remove()
    slope = (apart[0.01] - apart[-0.01]) / 0.02
    assert near.linear[near.row(index, part, place)] == pytest.approx(slope, rel=2e-2, abs=2e-6)


def test_curvature_is_what_changes_of_single_tokens_cost_together(solved, tmp_path):
    """Windows of one token, where nothing meets at another place; beside the dense model, whose divergence has no slope."""
    ids = windows(solved.folder, solved.words, 1)[:1500]
    responder = Responder(solved.source, ids[None], solved.choices, solved.store, tmp_path)
    near = responder.near([(0, 0)] * 3, 0)
    assert not near.linear.any() or np.abs(near.linear).max() < 1e-6
    seen = []
    for allocation in ([(0, 1), (0, 0), (0, 0)], [(0, 1), (0, 2), (0, 1)], [(0, 0), (0, 2), (0, 2)]):
        truth = by_hand(solved, named(allocation), ids)
        seen.append(near.expected(allocation) / truth)
    assert all(0.6 < one < 1.6 for one in seen), seen


def test_what_was_looked_at_is_not_looked_at_again(solved, tmp_path):
    first = Responder(solved.source, solved.texts.looked, solved.choices, solved.store, tmp_path)
    found = first.near(BASE, 0)
    again = Responder(None, solved.texts.looked, solved.choices, None, tmp_path).near(BASE, 2)  # the third draw is the first
    assert again.base == found.base and np.array_equal(again.curvature, found.curvature)


def test_a_choice_that_is_not_finite_is_never_taken(solved, tmp_path):
    class Broken:
        def __getattr__(self, name):
            return getattr(solved.store, name)

        def tensors(self, index, chosen, dense):
            found = solved.store.tensors(index, chosen, dense)
            if index == 1 and any(one.name == "mlp-16" for one in chosen):
                found["mlp.down_proj.weight"] = found["mlp.down_proj.weight"] * float("nan")
            return found

    near = Responder(solved.source, solved.texts.looked, solved.choices, Broken(), tmp_path).near(BASE, 0)
    row = near.row(1, 1, 2)
    assert near.linear[row] == IMPOSSIBLE and not near.curvature[row].any()
    assert np.isfinite(near.linear).all() and np.isfinite(near.curvature).all()


def test_costs_that_windows_disagree_about_are_drawn_to_the_others():
    """Eight blocks whose MLPs cost the same, but for chance, and one that costs ten times as much."""
    random, depth, counts = np.random.default_rng(0), 12, (1, 3)
    linear = np.zeros((depth * 4, 6))
    for index in range(depth):
        for place, cost in ((2, 0.1), (3, 0.2)):
            linear[index * 4 + place] = (10 if index == 4 else 1) * cost + random.normal(0, 0.1, 6)
    base = [(0, 0)] * 6 + [(0, 1)] * 6
    for index in range(6, depth):  # beside their base, as they are measured
        linear[index * 4 : index * 4 + 4] -= linear[index * 4 + 2].copy()
        linear[index * 4] = 0
    found = shrunk(linear, base, counts).reshape(depth, 4)
    before = linear.mean(1).reshape(depth, 4)
    costs, raw = (one[:, 3] - one[:, 1] for one in (found, before))
    usual = [index for index in range(depth) if index != 4]
    assert np.abs(costs[usual] - 0.2).mean() < 0.6 * np.abs(raw[usual] - 0.2).mean()
    assert costs[4] == pytest.approx(raw[4])
    assert all(found[index, 1 + place[1]] == 0 for index, place in enumerate(base))
