"""Candidates that are surely beaten are stopped; those that may be of use go on."""

from __future__ import annotations

import pytest

from hwprune.searching.evaluating.early_stopping import Expectation, FrontMember
from hwprune.searching.evaluating.scored import ScoredCandidate
from tests.searching.helpers import recipe_of


def test_a_candidate_that_others_beat_is_stopped_on_the_screen_and_leaves_no_files(evaluator):
    assert evaluator.dense.screen.examples == 100  # of 1,200
    advice = Expectation({"ratio": 0.5, "ratio_sd": 0.01, "divergence": 1.0, "drop": 0.1}, (FrontMember(7, 0.4, 0.0),))
    trial = evaluator.score(90, recipe_of(evaluator, 3), "test", advice)
    assert trial.state == "stopped"
    assert trial.failure.stage == "screen"
    assert trial.divergence.samples == 100
    assert "trial 7" in trial.failure.reason
    assert not evaluator.files.folder(90).exists()
    assert type(trial).from_table  # it survives the study like any other


@pytest.mark.parametrize(
    "advice",
    [
        Expectation(),
        Expectation({"ratio": 0.5, "ratio_sd": 0.05}, (FrontMember(7, 0.4, 0.0),)),  # it may be as fast as 0.35
        Expectation({"ratio": 0.5, "ratio_sd": 0.01}, (FrontMember(7, 0.4, 99.0),)),  # the rival may be further from dense
    ],
)
def test_one_that_may_be_of_use_goes_on(evaluator, advice):
    scored = evaluator.score(91, recipe_of(evaluator, 3), "test", advice)
    assert isinstance(scored, ScoredCandidate)
    assert scored.scores.divergence.samples == 1200
    assert ScoredCandidate.from_json(91, scored.to_json()) == scored
    assert evaluator.measure(scored).measured
