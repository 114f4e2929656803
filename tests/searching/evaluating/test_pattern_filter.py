"""Which mask patterns pay, on the real runtime."""

from __future__ import annotations

from hwprune.records.measurement import Measurement
from hwprune.searching.evaluating import pattern_filter


def test_masks_on_a_runtime_that_does_not_execute_them_are_measured_and_refused(evaluator):
    gains = pattern_filter.pattern_speedups(evaluator, ["unstructured", "2:4", "3:7"], 0.9)
    assert set(gains) == {"unstructured", "2:4"}  # 3:7 fits nowhere
    for gain in gains.values():
        assert gain.ci_low <= gain.value <= gain.ci_high
    assert pattern_filter.reason(Measurement(1.0, "x", 0.99, 1.01, 9)) == "no speedup on this target: measured 1.00 [0.99, 1.01]"
    assert pattern_filter.pays(Measurement(1.5, "x", 1.4, 1.6, 9)) and not pattern_filter.pays(
        Measurement(1.02, "x", 1.0, 1.04, 9)
    )


def test_on_a_machine_that_others_use_a_pattern_must_pay_by_more():
    from hwprune.records.measurement import Measurement

    for contended, low, expected in ((0.0, 1.05, True), (1.0, 1.05, False), (1.0, 1.4, True), (0.0, 1.0, False)):
        gain = Measurement(low + 0.02, "x", low, low + 0.04, 9, {"contended": contended})
        assert pattern_filter.pays(gain) is expected


def test_a_pattern_that_pays_by_chance_is_not_searched(evaluator, monkeypatch):
    """On a busy machine one of a few patterns may look faster: it has to be faster twice."""
    from hwprune.records.measurement import Measurement

    measured_in_turn = {
        "lucky": [Measurement(1.2, "x", 1.1, 1.3, 4), Measurement(1.0, "x", 0.95, 1.05, 4)],
        "real": [Measurement(1.2, "x", 1.1, 1.3, 4)] * 2,
    }
    for kind, expected in (("lucky", False), ("real", True)):
        left = list(measured_in_turn[kind])
        monkeypatch.setattr(pattern_filter, "_measured", lambda *_, left=left: left.pop(0))
        assert pattern_filter.pays(pattern_filter.pattern_speedups(evaluator, ["unstructured"], 0.9)["unstructured"]) is expected
