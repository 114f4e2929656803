"""The latency of a candidate's file, measured again where it is implausible."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from hwprune.latency.bench import Bench
from hwprune.latency.paired import Paired, geometric_mean
from hwprune.latency.source import MEASURED, Source
from hwprune.records.measurement import Measurement
from hwprune.searching.evaluating.early_stopping import Expectation

IMPLAUSIBLE_SD = 3.0
"""Standard deviations from the prediction beyond which a latency is measured again before it is believed."""
MOST_AGAIN = 2
"""Sessions that are added at most."""


class CandidateTimer:
    """Loads a file in the bench and measures it against the dense model."""

    def __init__(self, bench: Bench, source: Source) -> None:
        self._bench, self._source = bench, source

    def measure(self, path: Path, expected: Expectation | None = None) -> Paired:
        """Latency of a file; a first look, unless it is far from what is expected. Raises `CandidateFailure`."""
        self._bench.load("candidate", path)
        paired = self._source.candidate(path, brief=True)
        if expected is not None and self._is_implausible(paired, expected):
            return self._measure_again(path, paired)
        return paired

    def measure_long(self, path: Path) -> Paired:
        """Latency of a file in a session of full length. Raises `CandidateFailure`."""
        self._bench.load("candidate", path)
        return self._source.candidate(path)

    def _is_implausible(self, paired: Paired, expected: Expectation) -> bool:
        """Is a latency too far from what the table and all measurements so far say?"""
        if self._source.label != MEASURED or "ratio" not in expected.predicted:
            return False
        ratio, predicted, sd = 1 / paired.ratio, expected.predicted["ratio"], expected.predicted["ratio_sd"]
        own_sd = (1 / paired.speedup.ci_low - 1 / paired.speedup.ci_high) / 2 / 1.96
        return abs(ratio - predicted) > IMPLAUSIBLE_SD * math.hypot(sd, own_sd)

    def _measure_again(self, path: Path, first: Paired) -> Paired:
        """A second session. Where the two agree the prediction was wrong; where they don't, a third one decides.

        Returns:
            the geometric mean of the sessions that agree with the last one; the median where none does.
        """
        sessions = [first]
        agreeing: list[Paired] = []
        while not agreeing and len(sessions) <= MOST_AGAIN:
            last = self.measure_long(path)
            agreeing = [session for session in sessions if _overlap(session.speedup, last.speedup)]
            sessions.append(last)
        if agreeing:
            found = geometric_mean([*agreeing, sessions[-1]], self._bench.combine)
        else:
            found = sorted(sessions, key=lambda session: session.ratio)[len(sessions) // 2]
        return replace(found, again=len(sessions) - 1)


def _overlap(a: Measurement, b: Measurement) -> bool:
    return a.ci_low <= b.ci_high and b.ci_low <= a.ci_high
