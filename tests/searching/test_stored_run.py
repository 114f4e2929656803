"""Any run directory becomes a result; what a finished search has nothing left to do answers at once."""

from __future__ import annotations

import doctest
import json
import shutil

import matplotlib
import optuna
import pytest

import hwprune
from hwprune.common.files import dump_json
from hwprune.errors import UsageError
from hwprune.records.record import read_record
from hwprune.searching import result as result_module
from hwprune.searching import stored_run
from tests.conftest import tiny_workload


@pytest.fixture
def run(finished_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    return folder


def test_a_finished_run_is_what_the_search_gave_back(tmp_path):
    made = hwprune.search(tiny_workload(), trials=3, out=tmp_path / "run", seed=3)
    again = hwprune.load(tmp_path / "run")
    assert again.finished and again.run == made.run
    assert again.trials == made.trials
    assert again.notes == made.notes
    for one, other in zip(again.points, made.points, strict=True):
        assert (one.trial, one.drop, one.told_drop, one.told_high, one.folder) == (
            other.trial, other.drop, other.told_drop, other.told_high, other.folder,
        )  # fmt: skip
        assert (one.metric.value, one.latency.value, one.speedup.value) == (
            other.metric.value,
            other.latency.value,
            other.speedup.value,
        )
    # With nothing left to do the second search measures nothing: the latencies are the first one's.
    third = hwprune.search(tiny_workload(), trials=3, out=tmp_path / "run", seed=3, resume=True)
    assert [point.latency for point in third.points] == [point.latency for point in again.points]


def test_more_trials_or_another_recovery_go_on(run):
    record = read_record(run)
    assert stored_run.is_complete(record) == (len(record.data["trials"]) >= record.data["job"]["trials"])
    record.data["job"]["trials"] = len(record.data["trials"]) + 1
    record.data["notes"] = []
    assert not stored_run.is_complete(record)
    record.data["notes"] = ["The search converged after 3 of 40 trials: no candidate is expected to improve the front."]
    assert stored_run.is_complete(record)
    record.data["finished"] = False
    assert not stored_run.is_complete(record)


def test_a_run_that_was_killed_has_its_trials_and_no_front(run):
    data = json.loads((run / "record.json").read_text())
    data.update(finished=False, front=[], untrained=[], trained=[], quantised=[])
    (run / "record.json").write_text(dump_json(data))
    (run / "trials.csv").unlink()
    result = hwprune.load(run)
    assert not result.finished and not result.points and len(result.trials) == len(data["trials"])
    assert len(result.to_dataframe()) == len(data["trials"])
    assert "not finished" in str(result) and "not finished" in result._repr_html_()
    assert result.plot().get_ylabel().endswith("on validation")
    with pytest.raises(UsageError, match="front is empty"):
        result.best()


def test_a_run_before_its_first_trial_and_no_run_at_all(run, tmp_path):
    (run / "record.json").unlink()
    result = hwprune.load(run)
    assert not result.trials and not result.finished
    assert "no trial has finished" in str(result) and "no trial has finished" in result._repr_html_()
    with pytest.raises(UsageError, match="holds no run"):
        hwprune.load(tmp_path)


def test_notebooks_show_tables_and_nothing_is_injected(run):
    data = json.loads((run / "record.json").read_text())
    data["workload"]["name"] = "<script>alert(1)</script>"
    (run / "record.json").write_text(dump_json(data))
    result = hwprune.load(run)
    shown = result._repr_html_()
    assert shown.count("<tr>") == 2 + len(result.points) and "<script>" not in shown
    axes = result.plot()
    assert isinstance(axes, matplotlib.axes.Axes) and axes.get_xlabel() == "measured speedup over dense"
    assert hwprune.load(run).plot(axes) is axes  # into a figure of one's own
    recipe = result.trials[0].recipe
    assert recipe._repr_html_().count("<tr>") == 1 + len(recipe.choices)
    workload = tiny_workload()
    assert "Workload tiny" in workload._repr_html_()
    assert "multiply-accumulates" in hwprune.prune(workload, recipe)._repr_html_()


def test_examples_in_the_docstrings_run(run):
    for module in (stored_run, result_module):
        finder = doctest.DocTestFinder()
        tests = [test for test in finder.find(module, globs={"hwprune": hwprune, "RUN": run}) if test.examples]
        assert tests
        for test in tests:
            assert doctest.DocTestRunner().run(test).failed == 0


def test_callbacks_are_optunas(tmp_path):
    told = []

    def note(study, trial):
        told.append((trial.number, trial.state, len(study.trials)))

    most = optuna.study.MaxTrialsCallback(2, states=(optuna.trial.TrialState.COMPLETE,))
    result = hwprune.search(tiny_workload(), trials=6, out=tmp_path / "run", callbacks=[note, most])
    finished = [number for number, state, _ in told if state is optuna.trial.TrialState.COMPLETE]
    assert len(finished) == 2 and len(told) == len(result.trials)
    assert result.points and any("A callback stopped the search" in note for note in result.notes)
