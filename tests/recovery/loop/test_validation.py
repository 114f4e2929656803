"""Scores in PyTorch: always of the same examples, whatever the loader does."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hwprune.errors import WorkloadError
from hwprune.recovery.loop import validation
from hwprune.recovery.loop.validation import Validator
from tests.conftest import tiny_workload


class Noisy(TensorDataset):
    def __getitem__(self, place):
        x, y = super().__getitem__(place)
        return x + torch.randn_like(x), y


def loader(kind):
    workload = tiny_workload("agreement")
    x = torch.cat([inputs for inputs, _ in workload.validation])
    y = torch.cat([targets for _, targets in workload.validation])
    if kind == "shuffled":
        return dataclasses.replace(workload, validation=DataLoader(TensorDataset(x, y), 7, shuffle=True))
    return dataclasses.replace(workload, validation=DataLoader(Noisy(x, y), 7))


@pytest.mark.parametrize("kind", ["shuffled", "augmented"])
def test_a_loader_that_changes_is_read_once(kind):
    workload = loader(kind)
    validator = Validator(workload)
    validator.teach(workload.model)
    assert validator(workload.model).value == 1.0  # the dense model agrees with itself on the examples that it was asked about
    assert validator(workload.model).value == 1.0


def test_too_much_to_be_kept_is_told(monkeypatch):
    monkeypatch.setattr(validation, "KEPT_BYTES", 10)
    workload = loader("shuffled")
    validator = Validator(workload)
    validator.teach(workload.model)
    with pytest.raises(WorkloadError, match="other data each time"):
        validator(workload.model)
    still = Validator(tiny_workload("agreement"))
    still.teach(still.workload.model)
    assert still(still.workload.model).value == 1.0
