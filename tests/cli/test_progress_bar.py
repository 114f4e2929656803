"""The bar and the lines, drawn into memory."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hwprune.cli.progress_bar import Bar, Lines, make_progress
from hwprune.records.recipe import Recipe
from hwprune.records.trial import Failure, Trial
from tests.records.test_trial import measured


@pytest.mark.parametrize("width", [40, 100])
def test_bar_shows_the_best_point_and_the_time_left(monkeypatch, width):
    stream = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(file=stream, width=width, force_terminal=True, color_system=None)
    )
    bar = Bar()
    bar.stage("tracing the model")
    bar.calibrated(3, 7)
    bar._rich.refresh()
    bar.calibrated(7, 7)
    bar.trial(measured(3, 0.004, 1.7), measured(3, 0.004, 1.7), 3, 12, 75.0)
    bar._rich.refresh()
    bar.trial(Trial(4, Recipe(), "failed", failure=Failure("run", "it [red]crashed[/]")), None, 4, 0, None)
    bar._rich.refresh()
    bar.confirmed(2, 10)
    bar.close()
    shown = stream.getvalue()
    assert "3/7" in shown
    assert "3/12" in shown
    assert "1:15 to the final round" in shown
    assert ("best 1.70x at drop +0.0040" in shown) == (width == 100)
    assert "it [red]crashed[/]" in shown.replace("\n", " ")  # markup in a reason is text


def test_lines(capsys):
    lines = Lines()
    lines.stage("tracing the model")
    lines.trial(measured(3, 0.004, 1.7), None, 3, 12, 75.0)
    err = capsys.readouterr().err
    assert "[3/12] trial 3: 1.70x at drop +0.0040; 1:15 to the final round" in err


def test_quiet_is_silent(capsys):
    progress = make_progress(quiet=True)
    progress.stage("x")
    progress.trial(measured(3, 0.004, 1.7), None, 3, 12, 75.0)
    progress.close()
    assert capsys.readouterr().err == ""
