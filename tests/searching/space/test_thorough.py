"""Every trial gets the compensation of what is delivered, where it is quick."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprune.calibration import sufficient
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.searching.space import fitting, space_file, thorough
from tests.conftest import tiny_workload


@pytest.fixture
def fitted():
    pruner = Pruner(tiny_workload())
    return pruner, fitting.build(space_file.load("structured"), pruner, targets.load("cpu"), "avx512")


def test_a_quick_one_is_in_every_trial(fitted):
    pruner, space = fitted
    found, note = thorough.with_thorough_compensation(space, pruner, lambda _text: None)
    assert "sequential" in found.compensation.split("+")
    assert set(space.compensation.split("+")) <= set(found.compensation.split("+"))
    assert note == ""


def test_a_slow_one_is_told_with_the_way_to_have_it(fitted, monkeypatch):
    pruner, space = fitted
    monkeypatch.setattr(thorough, "MOST_CPU_S", -1.0)
    found, note = thorough.with_thorough_compensation(space, pruner, lambda _text: None)
    assert found == space
    assert "--recover" in note
    assert "sequential" in note


def test_few_calibration_examples_are_told(monkeypatch):
    monkeypatch.setattr(sufficient, "wanted_examples", lambda layers, module: 900)
    pruner = Pruner(replace(tiny_workload(), train=None))
    assert thorough.calibration_note(pruner).startswith("Calibration has")
    assert "900" in thorough.calibration_note(pruner)


def test_enough_calibration_examples_need_no_word():
    assert thorough.calibration_note(Pruner(tiny_workload())) == ""
