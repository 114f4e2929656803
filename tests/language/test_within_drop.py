"""The fastest models within a limit, against all of them repaired."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest

from hwprune.language.front_points import PointWriter
from hwprune.language.phase_study import FrontTrial
from hwprune.language.within_drop import TRIES, Drop, fastest_within

DENSE = 20.0


def front(rises):
    """Trials whose held-out perplexity is so many nats above dense; each is faster than the one before."""
    return [
        FrontTrial(number, (rise * 1.2, 1 + 0.1 * (number + 1)), {"score": {"perplexity": DENSE * math.exp(rise)}})
        for number, rise in enumerate(rises)
    ]


def repaired(trials, change):
    """What a repair makes of each, and which were asked for."""
    asked = []

    def perplexity(one):
        asked.append(one.number)
        return DENSE * math.exp(change(math.log(one.user_attrs["score"]["perplexity"] / DENSE), one.number))

    return perplexity, asked


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.3])
@pytest.mark.parametrize("count", [1, 3])
def test_the_fastest_within_is_found_whatever_a_repair_brings(factor, count):
    trials = front([0.02 * n for n in range(1, 30)])
    drop = Drop(0.25, DENSE)
    perplexity, asked = repaired(trials, lambda rise, _: factor * rise)
    kept, beyond = fastest_within(trials, drop, perplexity, count)
    within = [one for one in trials if factor * math.log(one.user_attrs["score"]["perplexity"] / DENSE) <= drop.nats]
    assert len(kept) >= min(count, len(within)) and all(one in within for one in kept) and kept[-1] == within[-1]
    assert len(asked) == len(set(asked)) == len(kept) + len(beyond) <= count + TRIES
    assert [one.values[1] for one in kept] == sorted(one.values[1] for one in kept)


def test_repairs_that_differ_from_trial_to_trial():
    draw, gaps = random.Random(0), []
    for _ in range(100):
        trials = front(sorted(draw.uniform(0.01, 0.6) for _ in range(15)))
        noise = [draw.uniform(0.85, 1.1) for _ in trials]
        perplexity, asked = repaired(trials, lambda rise, number, noise=noise: noise[number] * rise)
        kept, beyond = fastest_within(trials, Drop(0.3, DENSE), perplexity, 3)
        truth = {one.number: noise[one.number] * math.log(one.user_attrs["score"]["perplexity"] / DENSE) for one in trials}
        assert all(truth[one.number] <= 0.3 for one in kept) and all(truth[one.number] > 0.3 for one in beyond)
        fastest = max((number for number, rise in truth.items() if rise <= 0.3), default=None)
        gaps.append(fastest - kept[-1].number if kept else 0)  # what is faster and keeps it was not expected to
        assert len(asked) <= 3 + TRIES
    assert sum(gaps) / len(gaps) < 0.5


def test_slower_ones_are_spread_below_the_fastest():
    trials = front([0.02 * n for n in range(1, 30)])
    perplexity, _ = repaired(trials, lambda rise, _: rise)
    kept, beyond = fastest_within(trials, Drop(0.505, DENSE), perplexity, 4)
    logs = [math.log(one.values[1]) for one in kept]
    assert kept[-1].number == 24 and not beyond
    assert logs == pytest.approx([logs[-1] * part / 4 for part in (1, 2, 3, 4)], abs=0.06)


def test_nothing_keeps_the_limit():
    trials = front([0.3, 0.5])
    perplexity, asked = repaired(trials, lambda rise, _: rise)
    drop = Drop(0.1, DENSE)
    assert fastest_within(trials, drop, perplexity, 4) == ([], []) and asked == []
    assert (
        drop.nearest(trials)
        == (" (before repair the least cut one is 35.0 % above the dense perplexity, and 10.5 % are allowed)")
        and drop.nearest([]) == ""
    )


def test_a_limit_is_the_same_ratio_on_another_text():
    drop = Drop.of(2.0, 20.0, 30.0)
    assert drop.rise(33.0) == pytest.approx(drop.nats) and Drop.of(0.1, 1.0, 30.0) == drop
    assert drop.reach(taught=True) > drop.reach(taught=False) > drop.nats


def test_what_turned_out_beyond_is_not_left_in_the_run(tmp_path, monkeypatch):
    trials = front([0.1, 0.2, 0.29])
    writer = object.__new__(PointWriter)
    writer._out, writer._job, writer._step = tmp_path, SimpleNamespace(points=1), lambda *_: None

    def repaired_perplexity(trial):  # a repair that makes all of them a tenth worse
        (tmp_path / "candidates" / str(trial.number)).mkdir(parents=True)
        return DENSE * math.exp(1.1 * math.log(trial.user_attrs["score"]["perplexity"] / DENSE))

    monkeypatch.setattr(writer, "_held_perplexity", repaired_perplexity)
    monkeypatch.setattr(writer, "_point", lambda trial: trial.number)
    assert writer.points(trials, Drop(0.3, DENSE)) == [1]
    assert [path.name for path in (tmp_path / "candidates").iterdir()] == ["1"]
