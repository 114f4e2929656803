"""Trials as values."""

from __future__ import annotations

import json

import pytest

from hwprune.common.files import Table, dump_json
from hwprune.records.measurement import Measurement
from hwprune.records.recipe import Recipe, UnitChoice
from hwprune.records.trial import Failure, Trial


def measured(number, drop, speedup):
    one = Measurement(speedup, "x", speedup, speedup, 1, {"clock": "wall"})
    return Trial(number, Recipe((UnitChoice("a:0", "channel", 0.5, "l1"),)), "measured", one, drop, one, one, 10, 20, 30)


@pytest.mark.parametrize("trial", [measured(3, 0.01, 1.5), Trial(4, Recipe(), "failed", failure=Failure("run", "it <died>"))])
def test_trials_survive_json(trial):
    table = Table(json.loads(dump_json(trial.to_json())), "here")
    back = Trial.from_table(table)
    table.finish()
    assert back == trial


def test_trials_without_numbers_are_not_measured():
    with pytest.raises(ValueError, match="lacks numbers"):
        Trial(1, Recipe(), "measured")
