"""Samples of a split."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hwprune.workload import batches
from tests.conftest import tiny_workload

PLENTY = 10**9


@pytest.fixture
def sorted_split():
    """A thousand examples in batches of 20, of four classes one after the other; each holds its own number."""
    labels = torch.arange(1000) // 250
    inputs = torch.arange(1000.0)[:, None, None, None].expand(-1, 1, 8, 8)
    pairs = list(zip(inputs.split(20), labels.split(20), strict=True))
    return dataclasses.replace(tiny_workload("top1"), test=pairs)


def numbers(found):
    return [int(x[0, 0, 0]) for inputs, _ in found for x in inputs[0]]


def test_a_sample_is_of_the_whole_split(sorted_split):
    found = batches.sample(sorted_split, "test", 100, PLENTY)
    assert [len(inputs[0]) for inputs, _ in found] == [20] * 5
    taken = numbers(found)
    assert len(set(taken)) == 100
    labels = torch.cat([targets for _, targets in found])
    assert labels.tolist() == [number // 250 for number in taken]  # each with its own label
    assert all(10 <= int((labels == label).sum()) <= 40 for label in range(4))
    assert numbers(batches.sample(sorted_split, "test", 100, PLENTY)) == taken
    assert numbers(batches.sample(sorted_split, "test", 100, PLENTY, seed=1)) != taken


def test_every_example_has_the_same_chance(sorted_split):
    times = torch.zeros(1000)
    for seed in range(200):
        times[numbers(batches.sample(sorted_split, "test", 100, PLENTY, seed))] += 1
    quarters = times.reshape(4, 250).sum(dim=1) / times.sum()
    assert torch.allclose(quarters, torch.full((4,), 0.25), atol=0.02)


def test_a_small_split_is_taken_whole_and_in_order(sorted_split):
    assert numbers(batches.sample(sorted_split, "test", 5000, PLENTY)) == list(range(1000))


def test_no_more_bytes_than_allowed_but_one_batch_at_least(sorted_split):
    each = 4 * 64
    assert len(numbers(batches.sample(sorted_split, "test", 100, 45 * each))) == 40
    assert len(numbers(batches.sample(sorted_split, "test", 100, 1))) == 20
    assert len(numbers(batches.sample(sorted_split, "test", 1, PLENTY))) == 20


def test_batches_that_can_not_be_split_are_taken_whole(sorted_split):
    pairs = [(inputs, {"label": targets}) for inputs, targets in sorted_split.test]
    found = batches.sample(dataclasses.replace(sorted_split, test=pairs), "test", 100, PLENTY)
    assert len(found) == 5
    for inputs, targets in found:
        first = int(inputs[0][0, 0, 0, 0])
        assert first % 20 == 0 and torch.equal(targets["label"], (torch.arange(20) + first) // 250)
