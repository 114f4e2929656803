"""Constraints in numbers and words."""

from __future__ import annotations

import pytest

from hwprune.searching.constraints import REPAIR, Constraints
from tests.records.test_trial import measured


def test_constraints_in_numbers_and_words():
    limits = Constraints(max_drop=0.02, min_speedup=2.0, max_latency_s=1e-3, max_size=5000)
    assert limits.met(0.02, 2.0, 1e-3, 5000)
    for wrong in ((0.03, 2.0, 1e-3, 5000), (0.02, 1.9, 1e-3, 5000), (0.02, 2.0, 1.1e-3, 5000), (0.02, 2.0, 1e-3, 5001)):
        assert not limits.met(*wrong)
    assert limits.text() == "drop <= 0.02, speedup >= 2, latency <= 1.00 ms, size <= 5.00 kB"
    assert not Constraints() and limits
    loose = Constraints(max_drop=0.02).loosened(repaired=True)
    assert loose.max_drop == pytest.approx(0.02 * REPAIR + 0.01)
    assert Constraints(max_drop=1.0).loosened(dense=40.0).max_drop == pytest.approx(1.4)  # perplexity


def test_the_nearest_is_named_with_what_it_misses():
    trials = [measured(0, 0.05, 3.0), measured(1, 0.02, 1.5), measured(2, 0.3, 4.0)]
    text = Constraints(max_drop=0.01, min_speedup=1.4).nearest(trials, lambda t: f"trial {t.number}")
    assert "Nearest: trial 1; it misses the drop" in text
    slow = Constraints(max_drop=0.5).nearest([measured(0, 0.0, 0.9)], lambda t: f"trial {t.number}")
    assert "No candidate is faster than the dense model" in slow
    assert "could be measured" in Constraints().nearest([], lambda t: "")
