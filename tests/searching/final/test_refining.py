"""Trials are compensated as finalists are; where that takes too long, finalists are made more thoroughly."""

from __future__ import annotations

from dataclasses import replace

import pytest

import hwprune
from hwprune import compensation
from hwprune.pruning.pruner import Pruner
from hwprune.records.recipe import Recipe
from hwprune.searching.final.refining import repairs
from hwprune.searching.job import Job
from hwprune.searching.space import thorough
from tests.conftest import tiny_workload
from tests.records.test_trial import measured


@pytest.mark.parametrize("seconds", [1000.0, -1.0])
def test_the_delivered_model_is_the_one_that_was_ranked_unless_that_takes_too_long(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(thorough, "MOST_CPU_S", seconds)
    made = []
    prune = Pruner.prune
    monkeypatch.setattr(
        Pruner, "prune", lambda self, recipe, *rest: made.append(recipe.compensation) or prune(self, recipe, *rest)
    )
    result = hwprune.search(tiny_workload("top1"), trials=4, out=tmp_path / "run", database=tmp_path / "db", space="structured")
    searched = {t.recipe.compensation for t in result.trials if t.recipe.choices}
    told = [note for note in result.notes if "takes more than" in note]
    if seconds > 0:
        assert all("sequential" in names.split("+") for names in searched)
        assert not told
        # Two to find out how long it takes, then once a trial: nothing is made again for the final round.
        assert sum(compensation.is_sequential(steps) for steps in made) == 2 + len(result.trials)
    else:
        assert len(told) == 1
        origins = {t.number: t for t in result.trials}
        for point in result.points:  # made anew, and better, or left as it was
            assert point.trial.metric is not None
            assert point.trial.number in origins
    # A run that goes on keeps to what it began with, whatever the machine is doing now.
    monkeypatch.setattr(thorough, "MOST_CPU_S", -seconds)
    again = hwprune.search(
        tiny_workload("top1"), trials=4, out=tmp_path / "run", database=tmp_path / "db", space="structured", resume=True
    )
    assert {t.recipe.compensation for t in again.trials if t.recipe.choices} >= searched - {"none"}
    assert [t.recipe.digest for t in again.trials] == [t.recipe.digest for t in result.trials]


def test_who_is_made_more_thoroughly(evaluator):
    job = Job("demo:digits")
    quick = measured(0, 0.01, 2.0)
    slow = replace(quick, recipe=Recipe(quick.recipe.choices, "obs+sequential"))
    assert repairs(evaluator, job, [quick])
    assert not repairs(evaluator, job, [quick, slow])
    assert not repairs(evaluator, replace(job, recover="obs"), [quick])
