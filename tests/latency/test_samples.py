"""Batches of samples files in the order of their numbers, however many there are."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.deploy.exporting import whole_batches
from hwprune.latency.samples import read_batches
from hwprune.workload import sample_files, scoring

NUMBERS = [99_998, 99_999, 100_000, 100_001]
"""Names hold five digits, more where five are not enough: as texts they would sort 100000, 100001, 99998, 99999."""


@pytest.fixture
def samples(tmp_path):
    arrays = {f"{n:05d}.{kind}": np.array([n], np.float32) for n in NUMBERS for kind in ("input0", "target")}
    np.savez(tmp_path / "samples.npz", **arrays)
    return tmp_path / "samples.npz"


def test_inputs_are_read_in_the_order_of_their_numbers(samples):
    assert [(name, inputs[0].item()) for name, inputs in read_batches(str(samples))] == [(str(n), n) for n in NUMBERS]


def test_inputs_of_a_batch_are_read_by_position(tmp_path):
    np.savez(tmp_path / "x.npz", **{f"00000.input{position}": np.array(position) for position in (10, 9, 0)})
    ((_, inputs),) = read_batches(str(tmp_path / "x.npz"))
    assert [int(array) for array in inputs] == [0, 9, 10]


def test_targets_are_read_in_the_order_of_the_inputs(samples):
    assert [target.item() for target in sample_files.read_targets(samples)] == NUMBERS


def test_outputs_are_read_in_the_order_of_the_inputs(tmp_path):
    arrays = {f"{n:05d}.{position:03d}": np.array([n, position]) for n in NUMBERS for position in (999, 1000)}
    np.savez(tmp_path / "outputs.npz", **arrays)
    outputs = scoring.read_outputs(tmp_path / "outputs.npz")
    assert [[array.tolist() for array in batch] for batch in outputs] == [[[n, 999], [n, 1000]] for n in NUMBERS]


def test_batches_of_another_size_stay_in_order(samples):
    with np.load(samples) as stored:
        arrays = {name: stored[name] for name in stored.files}
    divided = whole_batches(arrays, 1)
    assert [divided[f"{count:06d}.target"].item() for count in range(len(NUMBERS))] == NUMBERS
