"""One contract for all criteria, then each against its formula."""

from __future__ import annotations

import pytest
import torch

from hwprune import criteria
from hwprune.errors import UnknownNameError


@pytest.fixture
def weight():
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_contract(name, weight):
    criterion = criteria.get(name)
    assert criterion.name == name
    scores = criterion.scores(weight)
    assert scores.shape == weight.shape
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()
    assert torch.equal(scores, criterion.scores(weight))
    slices = [weight.reshape(6, -1), torch.randn(6, 5, generator=torch.Generator().manual_seed(1))]
    axis = criterion.axis_scores(slices)
    assert axis.shape == (6,)
    assert (axis >= 0).all()
    assert torch.equal(axis, criterion.axis_scores(slices))


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_magnitude_of_zero_is_zero(name):
    assert criteria.get(name).scores(torch.zeros(2, 2)).sum() == 0


def test_l1_and_l2_of_an_axis_by_hand():
    slices = [torch.tensor([[3.0, -4.0], [1.0, 0.0]]), torch.tensor([[12.0], [-2.0]])]
    assert criteria.get("l1").axis_scores(slices).tolist() == [19.0, 3.0]
    assert criteria.get("l2").axis_scores(slices).tolist() == pytest.approx([13.0, 5**0.5])


@pytest.mark.parametrize(("a", "b"), [("l1", "l2")])
def test_equal_ranking_means_equal_order(a, b, weight):
    assert criteria.get(a).ranking == criteria.get(b).ranking
    first, second = (torch.argsort(criteria.get(n).scores(weight).reshape(-1), stable=True) for n in (a, b))
    assert torch.equal(first, second)


def test_random_differs_between_layers_and_seeds(weight):
    one, other = criteria.get("random").scores(weight), criteria.get("random").scores(weight + 1)
    assert not torch.equal(one, other)
    assert not torch.equal(one, criteria.Random(seed=1).scores(weight))
    assert 0.4 < float(one.mean()) < 0.6


def test_unknown_names_list_the_choices():
    with pytest.raises(UnknownNameError, match="l1, l2, random"):
        criteria.get("l3")
