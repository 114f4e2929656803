"""What a terminal shows while a search runs, drawn into memory."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hwprune.cli.live_view import LiveView
from hwprune.records.recipe import Recipe
from hwprune.records.trial import Failure, Trial
from hwprune.searching.progress import Heading
from tests.records.test_trial import measured

PHASES = ("load the model", "search", "measure the front again")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def view(monkeypatch, request):
    width, height = getattr(request, "param", (80, 40))
    stream = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console",
        lambda **_: Console(
            file=stream, width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False
        ),
    )
    made = LiveView(clock=Clock())
    made.stream, made.width = stream, width
    yield made
    made.close()


def shown(view):
    """The lines of the view as it stands."""
    stream = io.StringIO()
    Console(file=stream, width=view.width, color_system=None).print(view._draw())
    return stream.getvalue().splitlines()


def test_the_step_its_part_and_the_time_are_told_from_the_first_second(view):
    view.begin(Heading("demo:digits", "cpu", PHASES, expected={PHASES[0]: 10.0, PHASES[1]: 60.0, PHASES[2]: 30.0}))
    view.phase(PHASES[0])
    view.stage("pruning conv1 in every way", 2, 8)
    view._clock.now += 4
    lines = shown(view)
    assert lines[0] == "demo:digits on cpu"
    assert lines[1] == "step 1 of 3: load the model"
    assert lines[2].endswith("2 of 8 pruning conv1 in every way")
    assert lines[3] == "0:04 elapsed, about 1:36 left"  # as the last search took, less what has passed


def test_without_a_search_before_no_time_is_made_up(view):
    view.begin(Heading("demo:digits", "cpu", PHASES))
    view.phase(PHASES[0])
    assert shown(view)[2] == "0:00 elapsed"


def test_who_times_is_named_while_it_is_waited_for(view):
    view.begin(Heading("demo:digits", "cpu", PHASES))
    view.waiting("waiting for process 12, which is timing on cpu")
    assert "waiting for process 12, which is timing on cpu" in shown(view)
    view.waiting("")
    assert not any("waiting" in line for line in shown(view))


def searched(view, max_drop=None):
    view.begin(Heading("demo:digits", "cpu", PHASES, max_drop=max_drop))
    view.phase(PHASES[1])
    best = measured(1, 0.004, 3.0)
    view.trial(best, best, 1, 12, 90.0)
    view._clock.now += 30
    view.trial(measured(2, 0.03, 4.0), best, 2, 12, 75.0)
    view.trial(Trial(3, Recipe(), "failed", failure=Failure("run", "it [red]crashed[/]")), best, 3, 12, 75.0)
    view.stale(2, 3)
    return shown(view)


def test_trials_tell_the_best_point_the_pace_and_the_front(view):
    lines = searched(view)
    assert any(line.startswith("4 trials a minute, 1 failed, 2 of 3 proposals in a row promise no gain") for line in lines)
    assert "best at a drop of at most 0.01: 3.00x at a drop of +0.004" in lines
    assert "0:30 elapsed, about 1:15 left" in lines
    plot = lines[lines.index("") + 1 :]
    assert plot[0].startswith("  4.0x│") and "●" in plot[0]
    assert plot[-1].split() == ["drop", "0", "0.05"]
    assert sum(line.count("●") for line in plot) == 2
    # Markup in a reason is text, and what is worth it stays above the view.
    assert "trial 3: failed (run): it [red]crashed[/]" in view.stream.getvalue()
    assert "trial 1: 3.00x" in view.stream.getvalue() and "trial 2:" not in view.stream.getvalue()


def test_the_limit_that_was_given_is_the_one_of_the_best(view):
    assert "best at a drop of at most 0.03: 3.00x at a drop of +0.004" in searched(view, max_drop=0.03)


def test_drops_of_a_share_are_points(view):
    view.scale(share=True, usual=0.02)
    assert "best at a drop of at most 2.0 points: 3.00x at a drop of 0.4 points" in searched(view)


@pytest.mark.parametrize("view", [(30, 40), (50, 40), (120, 40)], indirect=True)
def test_no_line_is_wider_than_the_terminal(view):
    assert max(len(line.rstrip()) for line in searched(view)) <= view.width


@pytest.mark.parametrize("view", [(80, 12)], indirect=True)
def test_a_low_terminal_has_no_plot(view):
    assert "●" not in "".join(searched(view))


def test_a_stage_of_known_length_tells_the_time_left_at_its_own_pace(view):
    """A command that is no search; 12 of 30 blocks were there when it began."""
    view.stage("pruning blocks", 12, 30)
    assert not any("left" in line for line in shown(view))
    view._clock.now += 40
    view.stage("pruning blocks", 14, 30)
    view._clock.now += 20
    assert "1:00 elapsed, about 5:00 left" in shown(view)
    view.stage("evaluating blocks", 0, 30)
    assert not any("left" in line for line in shown(view))
