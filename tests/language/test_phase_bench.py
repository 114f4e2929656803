"""A machine on which the model that is loaded first has other memory than those that come later."""

from __future__ import annotations

import math

import pytest

from hwprune.language import phase_bench
from hwprune.language.phase_bench import EVERY, FIRST_COPIES, PhaseBench, against_copies
from hwprune.latency.paired import Paired
from hwprune.records.measurement import Measurement
from hwprune.streaming.phases import Tokens

SLOWER = {"prefill": 1.01, "decode": 1.07}
"""What the model that is loaded first takes, over its copies."""


def pair(ratio, inside=0.01):
    speedup = Measurement(ratio, "x", ratio * math.exp(-inside), ratio * math.exp(inside), 9, {"clock": "wall"})
    return Paired(speedup, Measurement(1.0 / ratio, "s", 0, 1, 9, {"dense_s": 1.0}))


class Machine:
    """Stands for `hwprune.latency.bench.Bench`: files are numbers, how much faster than dense they are."""

    clock = "wall"

    def __init__(self, _target):
        self.alive, self.events, self.loaded = False, [], {}

    def load(self, key, path, *, keep=False):
        self.alive = True
        self.loaded[key] = float(path.read_text())
        self.events.append((key, path.name, keep))

    def drop(self, key):
        del self.loaded[key]

    def pair(self, key, dense, inputs, settings, dense_inputs):
        phase = inputs.stem.partition("-")[2]
        return pair(SLOWER[phase] * self.loaded[key] / self.loaded[dense])

    def close(self):
        self.alive = False


class Shape:
    """Stands for a `CacheShape`."""

    def inputs(self, batch, count, past):
        return []


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setattr(phase_bench, "Bench", Machine)
    for name, faster in (("dense", 1.0), ("half", 2.0), ("same", 1.0)):
        (tmp_path / name).write_text(str(faster))
    with PhaseBench(None, Tokens(8, 4), (tmp_path / "dense", Shape()), tmp_path) as found:
        yield found


def test_what_all_share_is_no_speedup(bench, tmp_path):
    for phase, found in bench.measure(tmp_path / "half", Shape()).items():
        assert found.ratio == pytest.approx(2.0), phase
        assert found.latency.value * found.ratio == pytest.approx(1 / SLOWER[phase])  # the dense model's, as a copy has it
    assert all(found.ratio == pytest.approx(1.0) for found in bench.measure(tmp_path / "same", Shape()).values())


def test_copies_are_measured_first_and_again_and_after_a_crash(bench, tmp_path):
    machine = bench._bench

    def copies():
        return sum(event == ("model", "dense", False) for event in machine.events)

    for _ in range(EVERY):
        bench.measure(tmp_path / "half", Shape())
    assert copies() == FIRST_COPIES
    bench.measure(tmp_path / "half", Shape())
    assert copies() == FIRST_COPIES + 1
    machine.alive = False
    bench.measure(tmp_path / "half", Shape())
    assert copies() == 2 * FIRST_COPIES + 1
    assert [event for event in machine.events if event[2]] == [("dense", "dense", True)] * 2


def test_intervals_hold_how_much_copies_differ():
    alike, apart = against_copies(pair(1.2), [0.05] * 6), against_copies(pair(1.2), [0.0, 0.1, 0.05, 0.03, 0.07, 0.05])
    assert alike.ratio == pytest.approx(1.2 / math.exp(0.05)) == apart.ratio
    assert apart.speedup.ci_high / apart.speedup.ci_low > alike.speedup.ci_high / alike.speedup.ci_low > math.exp(0.02)
    assert apart.speedup.ci_low < 1.2 / math.exp(0.1) and apart.speedup.ci_high > 1.2
