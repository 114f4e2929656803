"""Prices from a bench that answers by a known formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwprune.errors import CandidateFailure, RunError, UsageError
from hwprune.language.part_choices import choices_for
from hwprune.language.phase_prices import Prices, measure_prices
from hwprune.latency.paired import Paired
from hwprune.records.measurement import Measurement
from hwprune.streaming.sweep_plan import SweepPlan

CHOICES = choices_for({"neuron": 64, "kv": 2}, SweepPlan((), "obs", "obs", multiple=32), "default", {})
SAVED = {"attention-1": (0.01, 0.002), "attention-0": (0.03, 0.001), "mlp-32": (0.02, -0.001), "mlp-0": (0.04, 0.004)}
FIRST = {"prefill": 1.0, "decode": 0.1}
DEPTH = 5


class Assembler:
    """Notes what it is to write: the sample's size tells its name."""

    suffix = ".onnx"

    def write(self, blocks, path):
        sizes = [len(block["x"]) for block in blocks]
        assert sizes[0] == 10 and sizes[1:] == [sizes[1]] * (DEPTH - 1)
        assert len({float(block["x"][0]) for block in blocks}) == DEPTH  # equal blocks would share caches
        path.write_text(list(SAVED)[sizes[1] - 1])
        return path.read_text()


class Bench:
    """A machine that is a tenth slower each time it is asked."""

    def __init__(self):
        self.asked, self.slow = [], 1.0

    def measure(self, path, shape):
        self.asked.append(shape)
        self.slow *= 1.1
        found = {}
        for phase, saved in zip(("prefill", "decode"), SAVED[path.read_text()], strict=True):
            dense = FIRST[phase] * self.slow
            ratio = FIRST[phase] / (FIRST[phase] - (DEPTH - 1) * saved)
            latency = Measurement(dense / ratio, "s", 0, 1, 3, {"dense_s": dense})
            found[phase] = Paired(Measurement(ratio, "x", 0, 9, 3, {"clock": "wall"}), latency)
        return found


def samples():
    return {name: {"x": torch.zeros(place)} for place, name in enumerate(SAVED, start=1)}


def blocks():
    return [{"x": torch.full((10,), float(index))} for index in range(DEPTH)]


def test_what_a_block_saves_is_found_from_ratios_on_a_machine_that_slows_down(tmp_path):
    prices = measure_prices(Bench(), Assembler(), samples(), blocks(), CHOICES, tmp_path)
    slow = prices.dense["prefill"] / FIRST["prefill"]
    for name, saved in SAVED.items():
        assert prices.saved["prefill"][name] == pytest.approx(saved[0] * slow)
        assert prices.saved["decode"][name] == pytest.approx(saved[1] * slow)  # what makes it slower, too
    found = prices.predicted("prefill", CHOICES, [(0, 0), (1, 1), (2, 0), (2, 2), (0, 0)])
    assert found == pytest.approx(slow * (1.0 - 0.01 - 0.02 - 0.03 - 0.03 - 0.04))


def test_a_killed_run_goes_on_at_the_choice_where_it_was(tmp_path):
    class Dies(Bench):
        def measure(self, path, shape):
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().measure(path, shape)

    with pytest.raises(KeyboardInterrupt):
        measure_prices(Dies(), Assembler(), samples(), blocks(), CHOICES, tmp_path)
    bench = Bench()
    prices = measure_prices(bench, Assembler(), samples(), blocks(), CHOICES, tmp_path)
    there, back = list(SAVED), list(SAVED)[::-1]
    assert bench.asked == there[2:] + back and set(prices.saved["decode"]) == set(SAVED)


def test_a_choice_that_does_not_run_is_named(tmp_path):
    class Fails(Bench):
        def measure(self, path, shape):
            raise CandidateFailure("measure", "no kernel")

    with pytest.raises(RunError, match="attention-1 in each block can't be run: no kernel"):
        measure_prices(Fails(), Assembler(), samples(), blocks(), CHOICES, tmp_path)


def test_whole_models_correct_the_table_where_they_say_something():
    """The table has MLPs of half the neurons a third too cheap by a session's luck; models measured later have them all over."""
    truth = Prices(FIRST, {p: {n: s[i] for n, s in SAVED.items()} for i, p in enumerate(("prefill", "decode"))})
    wrong = {phase: dict(saved) for phase, saved in truth.saved.items()}
    wrong["prefill"]["mlp-32"] = truth.saved["prefill"]["mlp-32"] * 1.3
    random, seen = np.random.default_rng(0), []
    for _ in range(40):
        allocation = [(int(random.integers(2)), int(random.integers(2))) for _ in range(DEPTH)]
        seen.append((allocation, {p: FIRST[p] / truth.predicted(p, CHOICES, allocation) for p in FIRST}))
    found = Prices(FIRST, wrong).learned(CHOICES, seen)
    assert found.saved["prefill"]["mlp-32"] == pytest.approx(truth.saved["prefill"]["mlp-32"], rel=0.06)
    assert found.saved["prefill"]["attention-1"] == pytest.approx(0.01, abs=0.001)
    assert found.saved["prefill"]["mlp-0"] == pytest.approx(0.04, rel=0.1)  # no model had it
    assert Prices(FIRST, wrong).learned(CHOICES, []).saved == wrong


def test_sizes_that_no_model_can_keep_are_refused():
    """Three blocks, of which each can lose 3 + 8 bytes of 100, and 2 of a cache of 9."""
    saved = {"size": {"attention-1": 2.0, "attention-0": 3.0, "mlp-32": 5.0, "mlp-0": 8.0}, "cache": {"attention-0": 2.0}}
    prices = Prices({"size": 100.0, "cache": 9.0}, saved)
    prices.check_sizes({"size": 67.0, "cache": 3.0}, CHOICES, 3)
    for limits in ({"size": 66.0}, {"cache": 2.9}):
        with pytest.raises(UsageError, match="can't be kept: dense has"):
            prices.check_sizes(limits, CHOICES, 3)
