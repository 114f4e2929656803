"""What loaders yield, in the forms in which people write them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import hwprune
from hwprune.errors import WorkloadError
from hwprune.workload import batch_forms


class Two(nn.Module):
    def forward(self, input_ids, attention_mask, labels=None):
        return (input_ids.float() * attention_mask)[:, :3]


IDS = torch.arange(24).reshape(4, 6)
MASK = torch.ones(4, 6, dtype=torch.long)
Y = torch.tensor([0, 1, 2, 0])


def two(batch):
    return hwprune.Workload("two", Two(), (IDS[:1], MASK[:1]), [batch], [batch])


@pytest.mark.parametrize(
    "batch",
    [
        ((IDS, MASK), Y),
        [[IDS, MASK], Y],
        (IDS, MASK, Y),
        {"labels": Y, "attention_mask": MASK, "input_ids": IDS},
        {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": MASK, "label": Y},
        ({"attention_mask": MASK, "input_ids": IDS}, Y),
        {"ids": IDS, "mask": MASK, "y": Y},
        ((IDS.int(), MASK.to(torch.uint8)), Y.to(torch.uint8)),
        ((IDS, MASK), Y.numpy()),
        ((IDS, MASK), Y.numpy().astype(np.uint16)),
        ((IDS, MASK), Y.tolist()),
        ((IDS, MASK), tuple(np.int16(y) for y in Y)),
    ],
    ids=range(12),
)
def test_one_batch_in_many_forms(batch):
    (((ids, mask), y),) = two(batch).batches("validation")
    assert torch.equal(ids, IDS) and torch.equal(mask, MASK) and torch.equal(y, Y)
    assert ids.dtype == mask.dtype == y.dtype == torch.int64


def test_a_loader_of_dictionaries():
    """As one of a Hugging Face data set with set_format('torch')."""
    rows = [{"input_ids": IDS[i], "attention_mask": MASK[i], "label": int(Y[i])} for i in range(4)]
    loader = DataLoader(rows, batch_size=3)
    found = list(dataclasses.replace(two(((IDS, MASK), Y)), validation=loader).batches("validation"))
    assert [len(inputs[0]) for inputs, _ in found] == [3, 1]
    assert torch.equal(torch.cat([y for _, y in found]), Y)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"ids": IDS, "labels": Y}, "mapping with ids, labels; the model takes input_ids, attention_mask"),
        ((IDS, MASK, Y, ["a"] * 4), "neither an input nor the targets"),
        (((IDS + 0.5, MASK), Y), r"inputs are torch.float32, the model takes torch.int64"),
        (((IDS, MASK), ["cat", "dog", "cat", "cow"]), "numbers of the classes"),
        (((IDS, MASK), np.array(["cat", "dog", "cat", "cow"])), "numbers of the classes"),
        (7, "must be a pair"),
    ],
)
def test_what_can_not_be_taken_is_told(batch, words):
    with pytest.raises(WorkloadError, match=words):
        list(two(batch).batches("validation"))


@pytest.mark.parametrize(
    ("given", "wanted", "fine"),
    [
        (torch.float64, torch.float32, True), (torch.float16, torch.float32, True), (torch.bfloat16, torch.float32, True),
        (torch.int32, torch.int64, True), (torch.uint8, torch.int64, True), (torch.int64, torch.int32, True),
        (torch.uint8, torch.float32, False), (torch.int64, torch.float32, False), (torch.float32, torch.int64, True),
        (torch.bool, torch.int64, False), (torch.int64, torch.bool, False),
    ],
)  # fmt: skip
def test_types_that_hold_the_same_values(given, wanted, fine):
    x = torch.tensor([0, 1, 100]).to(given)
    if fine:
        made = batch_forms.converted(x, wanted, "these")
        assert made.dtype == wanted and made.tolist() == x.tolist()
    else:
        with pytest.raises(WorkloadError, match=f"these are {given}, the model takes {wanted}"):
            batch_forms.converted(x, wanted, "these")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (torch.tensor([1e300], dtype=torch.float64), torch.float32),
        (torch.tensor([70000.0]), torch.float16),
        (torch.tensor([2**40]), torch.int32),
        (torch.tensor([-1]), torch.uint8),
        (torch.tensor([300]), torch.uint8),
        (torch.tensor([0.5]), torch.int64),
        (torch.tensor([1.0]), torch.bool),
    ],
)
def test_values_that_would_be_lost(value, wanted):
    with pytest.raises(WorkloadError, match="convert the data"):
        batch_forms.converted(value, wanted, "these")
