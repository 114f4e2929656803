"""Criteria, patterns and runtimes of other packages."""

from importlib import metadata

import pytest
import torch

from hwprune import criteria, patterns, runtimes, uniform_recipe
from hwprune.common import plugins
from hwprune.criteria.base import Criterion
from hwprune.criteria.magnitude import L1
from hwprune.errors import UnknownNameError, UsageError
from hwprune.patterns.base import Pattern
from hwprune.patterns.unstructured import Unstructured
from hwprune.pruning.pruner import Pruner


class Largest(Criterion):
    """The other way round: large weights go."""

    name, description, ranking = "largest", "for a test", "largest"

    def scores(self, weight, statistics=None):
        return 1 / (1 + weight.detach().float().abs())

    def axis_scores(self, parts):
        return 1 / (1 + L1().axis_scores(parts))


class Mine(Pattern):
    name, description = "mine", "for a test"

    def keep_mask(self, scores, sparsity=None):
        return Unstructured().keep_mask(scores, sparsity)

    def inadmissible(self, shape):
        return None


def point(name, value, group):
    return metadata.EntryPoint(name, f"tests.common.test_plugins:{value}", group)


@pytest.fixture
def registered(monkeypatch):
    def register(**groups):
        def entry_points(group):
            return [point(name, name, group) for name in groups.get(group.rpartition(".")[2], ())]

        plugins.found.cache_clear()
        monkeypatch.setattr(metadata, "entry_points", entry_points)

    yield register
    monkeypatch.undo()
    plugins.found.cache_clear()


def test_what_is_registered_is_used(registered, tiny):
    registered(criteria=["Largest"], patterns=["Mine"])
    assert isinstance(criteria.get("largest"), Largest) and isinstance(patterns.get("mine"), Mine)
    pruner = Pruner(tiny)
    kept = pruner.prune(uniform_recipe(pruner, "channel", 0.5, criterion="largest", compensation="none")).keeps
    other = pruner.prune(uniform_recipe(pruner, "channel", 0.5, criterion="l1", compensation="none")).keeps
    for name, keep in kept.items():
        assert not bool((keep & other[name]).any())  # exactly what magnitude removes
    with pytest.raises(UnknownNameError, match="largest"):
        criteria.get("largst")


def test_what_is_wrong_with_it_is_told(registered):
    registered(criteria=["Mine"])
    with pytest.raises(UsageError, match="is no hwprune Criterion: got Mine"):
        criteria.get("mine")
    registered(patterns=["Nothing"])
    with pytest.raises(UsageError, match="can't be loaded: AttributeError"):
        patterns.get("mine")
    registered(criteria=["Largest", "Largest"])
    with pytest.raises(UsageError, match="taken"):
        criteria.get("largest")
    registered()
    with pytest.raises(UnknownNameError):
        runtimes.get("nothing")
    assert torch.is_tensor(Largest().scores(torch.ones(2)))
