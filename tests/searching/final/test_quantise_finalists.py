"""Precisions beside pruning: what is said of those that were tried."""

from dataclasses import replace

from hwprune.searching.final.point import Confirmed
from hwprune.searching.final.quantise_finalists import left_out
from tests.test_values import measured


def point(number, drop, speedup, precision=""):
    trial = measured(number, drop, speedup)
    if precision:
        trial = replace(trial, quantised={"precision": precision, "of": "dense"})
    return Confirmed(trial, trial.metric, drop, trial.latency, trial.speedup, "test")


def test_a_precision_that_is_nowhere_on_the_front_is_told_with_its_fastest():
    eight = [point(10, 0.02, 1.5, "int8"), point(11, 0.3, 9.85, "int8")]
    four = [point(12, 0.001, 1.1, "int4")]
    notes = left_out([*eight, *four], [point(1, 0.0, 2.0), *four])
    assert len(notes) == 1 and notes[0].startswith("int8 was tried on 2 models") and "9.85x at drop +0.3000" in notes[0]
    assert left_out(eight, eight) == [] and left_out([], [point(1, 0.0, 2.0)]) == []
