"""Which mask patterns the target really executes faster: measured before the search, so that none pays for a dead option.

The profile's word is only the prior. A version of the whole model with as much of a pattern as the space allows is measured
against dense; what does not pay at its most does not pay at less.

A false admission costs half of the search, and a machine that is busy, or a dense model that happens to lie badly in memory,
makes everything look faster, a copy of the dense model too. So in each session a copy is measured beside the pattern, and what
counts is the difference of the two. Where the pattern brings nothing, both are draws from one distribution, whatever that is: the
difference is above zero in half of the sessions, and a sign test needs no word on how the noise is distributed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from hwprune import patterns
from hwprune.errors import CandidateFailure, UsageError
from hwprune.latency import paired
from hwprune.latency.source import Measured
from hwprune.pruning.uniform import uniform_recipe
from hwprune.records.measurement import Measurement
from hwprune.searching.evaluating.evaluator import Evaluator

LEAST_GAIN = 1.01
"""A pattern must surely be faster than this on the whole model."""
FALSE_ADMISSIONS = 0.01
"""Largest probability that any of the patterns that bring nothing is admitted, divided among them (Bonferroni)."""
TOKENS_GONE = 0.5
"""Share of the tokens that goes at every border where it is measured whether fewer tokens pay."""
FIRST_SESSIONS = 3
"""Short sessions of the first look; only what looks good in it is looked at again, in sessions of its own."""

Session = Callable[[int, bool], tuple[Measurement, Measurement]]
"""(number of the session, a first look is enough) -> speedups of the pattern and of a copy of the dense model."""


def sessions_needed(among: int) -> int:
    """Sessions in which a pattern may fail once, and is still admitted falsely in less than its share of `FALSE_ADMISSIONS`.

    Of n fair coins at least n - 1 show heads with probability (n + 1) / 2^n: 11 sessions for one pattern, 12 for two or three.
    """
    count = 2
    while (count + 1) / 2**count > FALSE_ADMISSIONS / among:
        count += 1
    return count


def pays(gain: Measurement) -> bool:
    return gain.ci_low > LEAST_GAIN


def reason(gain: Measurement) -> str:
    """Why a pattern that does not pay is left out."""
    return f"no speedup on this target: measured {gain.value:.2f} [{gain.ci_low:.2f}, {gain.ci_high:.2f}]"


def pattern_speedups(evaluator: Evaluator, names: Sequence[str], sparsity: float) -> dict[str, Measurement]:
    """Mask pattern -> speedup of a model with that pattern in every weight that it fits. Patterns that fit nowhere are left out.

    Args:
        sparsity: of patterns that don't fix theirs.
    """
    found: dict[str, Measurement] = {}
    for name in names:
        pattern = patterns.get(name)
        folder = evaluator.dense.home / "filter"
        try:
            level = pattern.fixed_sparsity if pattern.fixed_sparsity is not None else sparsity
            if name in patterns.TOKENS:
                level = TOKENS_GONE
            candidate = evaluator.pruner.prune(uniform_recipe(evaluator.pruner, name, level, "l2", "none"))
            path, _ = evaluator.files.write_candidate(candidate, folder)
            if isinstance(evaluator.source, Measured) and name in patterns.TOKENS:
                found[name] = first_look(_sessions_of(evaluator, path), evaluator.source.settings.session_sd)
            elif isinstance(evaluator.source, Measured):
                found[name] = judge(_sessions_of(evaluator, path), len(names), evaluator.source.settings.session_sd)
            else:  # a prediction is the same in every session
                found[name] = _speedup(evaluator, path, brief=False)
        except (CandidateFailure, UsageError):
            continue
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def judge(session: Session, among: int, session_sd: float = paired.SESSION_SD) -> Measurement:
    """The speedup of one pattern beyond what a copy of the dense model shows; `pays` says whether it is admitted.

    The interval of a pattern that was looked at twice is that of the median difference, by order statistics and at the level that
    the pattern's share of `FALSE_ADMISSIONS` leaves.

    Args:
        among: how many patterns are judged.
        session_sd: deviation of ln(speedup) between sessions, for the interval of the first look.
    """
    bar = math.log(LEAST_GAIN)
    first = first_look(session, session_sd)
    if math.log(first.value) <= bar:
        return first
    # What looked good may have looked so by chance: what was seen so far does not count.
    looked: list[tuple[Measurement, Measurement]] = []
    gains: list[float] = []
    needed = sessions_needed(among)
    while len(gains) < needed and sum(gain <= bar for gain in gains) < 2:
        looked.append(session(FIRST_SESSIONS + len(gains), False))
        gains.append(_beyond_copy(looked[-1]))
    ordered = sorted(gains)
    end = 1 if len(ordered) == needed else 0  # what was given up early knows no more than its extremes
    return _measurement(looked, median(ordered), ordered[end], ordered[-1 - end])


def first_look(session: Session, session_sd: float) -> Measurement:
    """The speedup beyond that of a copy, of a few short sessions: enough for what brings much, or nothing at all."""
    looked = [session(number, True) for number in range(FIRST_SESSIONS)]
    gains = [_beyond_copy(one) for one in looked]
    # The noise is that of two sessions; a median knows less than a mean (pi / 2 times the variance).
    half = 1.96 * math.sqrt(math.pi / 2 * 2 / len(gains)) * max(session_sd, paired.SESSION_SD)
    middle = median(gains)
    return _measurement(looked, middle, middle - half, middle + half)


def _beyond_copy(session: tuple[Measurement, Measurement]) -> float:
    """ln(speedup) beyond that of the copy."""
    pattern, copy = session
    return math.log(pattern.value / copy.value)


def _measurement(looked: Sequence[tuple[Measurement, Measurement]], middle: float, low: float, high: float) -> Measurement:
    last = looked[-1][0]
    conditions = {
        **last.conditions,
        "contended": max(float(one.conditions.get("contended", 0.0)) for session in looked for one in session),
        "copies": [round(math.log(copy.value), 6) for _, copy in looked],
        "log_ratios": [round(math.log(pattern.value), 6) for pattern, _ in looked],
    }
    samples = sum(pattern.samples for pattern, _ in looked)
    return replace(
        last, value=math.exp(middle), ci_low=math.exp(low), ci_high=math.exp(high), samples=samples, conditions=conditions
    )


def _sessions_of(evaluator: Evaluator, path: Path) -> Session:
    def session(number: int, brief: bool) -> tuple[Measurement, Measurement]:  # noqa: FBT001 - a callback of two positions
        # Turn by turn the one or the other comes first, so that a drift of the machine favours neither.
        if number % 2:
            copy = _speedup(evaluator, evaluator.dense.path, brief=brief)
            return _speedup(evaluator, path, brief=brief), copy
        return _speedup(evaluator, path, brief=brief), _speedup(evaluator, evaluator.dense.path, brief=brief)

    return session


def _speedup(evaluator: Evaluator, path: Path, *, brief: bool) -> Measurement:
    """The speedup of one session, with the file loaded anew."""
    evaluator.bench.load("candidate", path)
    return evaluator.source.candidate(path, brief=brief).speedup
