"""Times of small pieces against a reference."""

from __future__ import annotations

import random

import pytest

from hwprune.latency import micro
from hwprune.latency.paired import Clock, Timed


class World:
    """Calls take what we say; the whole machine runs at a ``speed`` that drifts."""

    def __init__(self, drift=0.0, noise=0.0):
        self.now, self.calls, self.drift, self.noise = 0.0, 0, drift, random.Random(0) if noise else None
        self.spread = noise

    def timed(self, seconds, call=2e-6):
        def run():
            self.calls += 1
            slow = 1 + self.drift * (self.now % 1.0)
            jitter = self.noise.gauss(1, self.spread) if self.noise else 1.0
            self.now += (seconds + call) * slow * jitter

        return Timed(run)

    def clock(self):
        return Clock(lambda: round(self.now * 1e9), lambda: round(self.now * 1e9), lambda: 0)


def test_ratios_are_free_of_the_cost_of_a_call():
    world = World()
    found, own, call = micro.measure(
        [world.timed(1e-4), world.timed(3e-6)], world.timed(5e-5), world.timed(0.0), "wall", clock=world.clock()
    )
    assert own == pytest.approx(5e-5, rel=1e-3)
    assert call == pytest.approx(2e-6, rel=1e-3)
    assert [one.ratio for one in found] == pytest.approx([2.0, 0.06], rel=1e-3)


def test_a_machine_that_slows_down_slows_the_reference_too():
    world = World(drift=1.0)  # twice as slow at the end of each second
    found, _, _ = micro.measure([world.timed(1e-4)], world.timed(5e-5), world.timed(0.0), "thread_cpu", clock=world.clock())
    assert found[0].ratio == pytest.approx(2.0, rel=0.02)


def test_half_width_covers_the_noise():
    hits = 0
    for seed in range(60):
        world = World(noise=0.05)
        world.noise.seed(seed)
        found, _, _ = micro.measure([world.timed(1e-4)], world.timed(5e-5), world.timed(0.0), "wall", clock=world.clock())
        hits += abs(found[0].ratio - 2.0) <= found[0].half_width
    assert hits >= 48  # nominally 57 of 60; eleven rounds give a rough deviation
