"""Damages that add up to what each choice costs in all blocks."""

from __future__ import annotations

import json

import pytest

from hwprune.language.joint_damages import added_up
from hwprune.language.part_choices import choices_for
from hwprune.language.trial_scores import Score
from hwprune.streaming.sweep_plan import SweepPlan

CHOICES = choices_for({"neuron": 64, "kv": 2}, SweepPlan((), "obs", "obs", multiple=32), "default", {})
DAMAGES = [
    {"attention-1": 0.1, "attention-0": 1.0, "mlp-32": 0.05, "mlp-0": 2.0},
    {"attention-1": 0.3, "attention-0": 3.0, "mlp-32": 0.15, "mlp-0": 6.0},
]
JOINT = {(1, 0): 0.3, (0, 1): 0.1}


def test_each_choice_in_all_blocks_adds_up_to_what_it_costs_there(tmp_path):
    asked = []

    def score(allocation):
        asked.append(allocation)
        assert len(set(allocation)) == 1 and len(allocation) == 2
        return Score(JOINT[allocation[0]], 20.0)

    found = added_up(score, CHOICES, DAMAGES, tmp_path)
    assert sum(one["attention-1"] for one in found) == pytest.approx(0.3)
    assert sum(one["mlp-32"] for one in found) == pytest.approx(0.1)
    assert found[1]["mlp-32"] / found[0]["mlp-32"] == pytest.approx(3)  # blocks keep their order
    assert found[0]["attention-0"] == pytest.approx(0.75) and found[1]["mlp-0"] == pytest.approx(3.0)
    assert added_up(score, CHOICES, DAMAGES, tmp_path) == found and len(asked) == 2  # a killed run does not ask again


def test_a_ruined_model_says_nothing(tmp_path):
    (tmp_path / "joint.json").write_text(json.dumps({"attention-1": 9.0, "mlp-32": 0.1}))
    found = added_up(lambda _: Score(0, 1), CHOICES, DAMAGES, tmp_path)
    assert found[0]["attention-1"] == 0.1 and found[0]["mlp-32"] == pytest.approx(0.025)
