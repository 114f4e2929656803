"""What the search knows of candidates before they are evaluated."""

from __future__ import annotations

import dataclasses

import pytest

from hwprune.records.measurement import Measurement
from hwprune.searching.constraints import REPAIR, Constraints
from hwprune.searching.sampling.search_model import front_members, limits_of
from tests.records.test_trial import measured


def test_front_members_are_the_front_by_divergence_and_ratio():
    def one(number, kl, speedup):
        return dataclasses.replace(measured(number, 0.1, speedup), divergence=Measurement(kl, "nats", kl, kl, 100))

    found = front_members([one(0, 0.5, 3.0), one(1, 0.6, 2.0), one(2, 0.1, 1.5), one(3, 0.3, 2.5)])
    assert [r.number for r in found] == [0, 3, 2]


def test_limits_for_the_sampler(evaluator):
    base = evaluator.dense.baseline
    limits = limits_of(Constraints(0.01, 2.0, base.latency.value / 4, base.size_bytes // 2), base, repaired=True)
    assert limits.max_drop == pytest.approx(0.01 * REPAIR)
    assert limits.max_ratio == pytest.approx(0.25)
    assert limits.min_saved == {"file": base.size_bytes - base.size_bytes // 2}
    assert not limits_of(Constraints(max_size=2 * base.size_bytes), base).min_saved
    trained = limits_of(Constraints(0.01), base, repaired=True, trained=True)
    assert trained.max_drop > limits.max_drop  # training brings back more than compensation does
