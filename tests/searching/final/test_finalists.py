"""Who is confirmed, and who leaves the front."""

from __future__ import annotations

from hwprune.searching.constraints import Constraints
from hwprune.searching.final import finalists, point
from tests.records.test_trial import measured


def test_finalists_are_the_front_then_what_is_behind_it():
    trials = [
        measured(i, drop, speed) for i, (drop, speed) in enumerate([(0.0, 1.2), (0.1, 2.0), (0.05, 1.1), (0.2, 1.9), (0.0, 0.9)])
    ]
    assert [t.number for t in finalists.finalists(trials, Constraints())] == [2, 0, 3, 1]
    assert [t.number for t in finalists.finalists(trials, Constraints(max_drop=0.05))] == [2, 0]
    many = [measured(i, 0.01 * i, 1.1 + 0.1 * i) for i in range(30)]
    chosen = finalists.finalists(many, Constraints())
    assert len(chosen) == finalists.MOST_FINALISTS
    assert (chosen[0].number, chosen[-1].number) == (0, 29)


def test_places_of_finalists_that_fell_are_taken_by_others():
    """Trial 1 was measured too fast; now trial 4 stands where it stood. Who only stands behind others is not measured."""
    trials = [measured(i, 0.01 * i, 1.2 + 0.2 * i) for i in range(4)] + [measured(4, 0.012, 1.35), measured(5, 0.03, 1.1)]
    done = {0, 1, 2, 3}
    assert finalists.promoted(trials, done, Constraints(), 1.0) == []
    slower = [t if t.number != 1 else measured(1, 0.01, 1.1) for t in trials]
    assert [t.number for t in finalists.promoted(slower, done, Constraints(), 1.0)] == [4]
    many = [measured(i, 0.01 * i, 1.1 + 0.1 * i) for i in range(30)]
    standing = {0, 4, 8, 12, 16, 20, 24, 29}
    assert finalists.promoted(many, standing, Constraints(), 1.0) == []  # a long front is not measured whole


def test_points_slower_than_dense_or_dominated_leave_the_front():
    def confirmed(number, drop, speed):
        trial = measured(number, drop, speed)
        return point.Confirmed(trial, trial.metric, drop, trial.latency, trial.speedup, "test")

    points = [confirmed(0, 0.0, 0.98), confirmed(1, 0.01, 1.5), confirmed(2, 0.02, 1.4), confirmed(3, 0.05, 2.0)]
    assert [p.trial.number for p in point.final_front(points, Constraints())] == [1, 3]
    assert [p.trial.number for p in point.final_front(points, Constraints(max_drop=0.02))] == [1]
    assert point.final_front(points, Constraints(max_drop=0.0)) == []
