"""The channel multiple and the ends of stairs, on staircases whose steps are known."""

from __future__ import annotations

import random

import pytest

from hwprune.probe.staircase import counts_for, detected_multiple, worthwhile


def stair(step, size, noise=0.0, seed=0, base=5.0):
    draw = random.Random(seed)
    return {k: (base + -(-k // step)) * (1 + draw.gauss(0, noise)) for k in range(max(1, size - 47), size + 1)}


@pytest.mark.parametrize("step", [4, 8, 16])
def test_finds_the_step(step):
    assert detected_multiple(stair(step, 64, base=1.0)) == step


@pytest.mark.parametrize("step", [8, 16])
def test_finds_the_step_under_noise(step):
    """Three per cent of noise, as micro-measurements have: right in at least 18 of 20."""
    assert sum(detected_multiple(stair(step, 64, 0.02, seed, base=0.5)) == step for seed in range(20)) >= 18


def test_a_slope_has_no_multiple_and_a_flat_line_neither():
    assert detected_multiple({k: 10.0 * k for k in range(17, 65)}) == 1
    assert detected_multiple(dict.fromkeys(range(17, 65), 10.0)) == 1


def test_a_multiple_that_is_faster_than_what_lies_below_counts():
    """ONNX Runtime: multiples of 16 are fast, everything between is slower than the next multiple."""
    times = {k: (2.0 if k % 16 else 1.0) * -(-k // 16) for k in range(17, 65)}
    assert detected_multiple(times) == 16


def test_ends_of_stairs_are_what_no_larger_count_matches():
    assert worthwhile(stair(16, 64, base=0.0)) == [64, 48, 32]
    assert worthwhile({64: 5.0, 48: 5.0, 32: 6.0, 16: 1.0}) == [64, 16]


def test_counts():
    assert counts_for(12, 16, 1) == list(range(1, 13))
    found = counts_for(256, 16, 8)
    assert len(found) <= 16
    assert found[-1] == 256
    assert all(k % 8 == 0 for k in found)
