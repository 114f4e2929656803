"""Who is told what: lines, the log file, silence."""

from __future__ import annotations

import io
import sys

from hwprune.cli.progress_bar import LOG, LogFile, Several, make_progress
from hwprune.cli.progress_lines import Lines
from hwprune.records.recipe import Recipe
from hwprune.records.trial import Failure, Trial
from hwprune.searching.progress import Heading, Progress
from tests.records.test_trial import measured

HEADING = Heading("demo:digits", "cpu", ("load", "search"))
STOPPED = Trial(4, Recipe(), "stopped", failure=Failure("screen", "worse than trial 3: 0.749 nats on 500 examples"))


def told(*, verbose=False, heading=HEADING):
    stream = io.StringIO()
    lines = Lines(stream, verbose=verbose)
    if heading is not None:
        lines.begin(heading)
        lines.phase("load")
    lines.stage("tracing the model")
    for done in range(8):
        lines.stage("pruning in every way", done, 8)
    lines.trial(measured(3, 0.004, 1.7), None, 3, 12, 75.0)
    lines.trial(STOPPED, None, 4, 12, None)
    return stream.getvalue().splitlines()


def test_a_pipe_gets_steps_and_trials_in_short_lines():
    assert told() == [
        "step 1/2: load",
        "[3/12] trial 3: 1.70x at a drop of +0.004 (1:15 left)",
        "[4/12] trial 4: stopped early (worse than trial 3)",
    ]


def test_verbose_lines_have_stages_in_quarters_and_whole_reasons():
    lines = told(verbose=True)
    assert "tracing the model" in lines
    assert [line for line in lines if line.startswith("pruning")] == [
        "pruning in every way",
        *(f"pruning in every way ({done} of 8)" for done in (2, 4, 6)),
    ]
    assert lines[-1] == "[4/12] trial 4: stopped early: worse than trial 3: 0.749 nats on 500 examples"


def test_commands_without_steps_tell_their_stages():
    assert "tracing the model" in told(heading=None)


def test_what_the_last_search_took_is_told_once():
    stream = io.StringIO()
    lines = Lines(stream)
    known = Heading("demo:digits", "cpu", ("load", "search"), expected={"load": 5.0, "search": 70.0, "one finalist": 9.0})
    lines.begin(known)
    lines.begin(known)
    assert stream.getvalue() == "the last search like this took 1:15\n"


def test_the_log_has_everything_and_the_time_from_the_beginning(tmp_path):
    log = LogFile()
    log.begin(HEADING)
    log.stage("loading")  # the run directory is not known yet
    run = tmp_path / "run"
    run.mkdir()
    log.begin(Heading("demo:digits", "cpu", ("load", "search"), str(run)))
    log.trial(STOPPED, None, 4, 12, None)
    log.close()
    lines = (run / LOG).read_text().splitlines()
    assert [line[20:] for line in lines] == [
        "loading",
        "[4/12] trial 4: stopped early: worse than trial 3: 0.749 nats on 500 examples",
    ]
    assert all(line[:4].isdigit() and line[10] == " " for line in lines)


def test_several_are_told_the_same():
    class Counting(Progress):
        def __init__(self):
            self.words = []

        def __getattribute__(self, name):
            if name in ("words", "__class__"):
                return super().__getattribute__(name)
            return lambda *arguments, **named: self.words.append((name, *arguments, *named.values()))

    one, other = Counting(), Counting()
    both = Several([one, other])
    calls = {
        "begin": (HEADING,), "phase": ("load",), "stage": ("x", 1, 2), "waiting": ("y",), "note": ("z",), "stale": (1, 3),
        "trial": (STOPPED, None, 1, 2, None), "calibrated": (1, 2), "confirmed": (1, 2), "scale": (True, 0.02), "trained": (1, 2, 3.0, "b"), "close": (),
    }  # fmt: skip
    public = {name for name in vars(Progress) if not name.startswith("_")}
    assert set(calls) == public  # a new one must be passed on too
    for name, arguments in calls.items():
        if name == "scale":
            both.scale(share=True, usual=0.02)
        else:
            getattr(both, name)(*arguments)
    assert one.words == other.words == [(name, *arguments) for name, arguments in calls.items()]


def test_quiet_is_silent(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    progress = make_progress(quiet=True)
    progress.begin(HEADING)
    progress.stage("x")
    progress.trial(measured(3, 0.004, 1.7), None, 3, 12, 75.0)
    progress.close()
    assert capsys.readouterr().err == ""


def test_a_pipe_is_told_the_time_left_four_times(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    lines = Lines(stream, clock=lambda: now[0])
    for done in range(8):
        lines.stage("pruning blocks", done, 8)
        now[0] += 10
    assert stream.getvalue().splitlines() == [
        "pruning blocks", "pruning blocks (2 of 8, about 1:00 left)", "pruning blocks (4 of 8, about 0:40 left)",
        "pruning blocks (6 of 8, about 0:20 left)",
    ]  # fmt: skip
