"""Intervals over seeds."""

from __future__ import annotations

import pytest

from hwprune.recovery.tickets.ticket_result import Interval, TicketRound


def test_intervals():
    found = Interval.of([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.high - 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert TicketRound(0.8, (0.9, 0.91, 0.92), (0.5, 0.51, 0.52)).apart
    assert not TicketRound(0.8, (0.9, 0.5, 0.7), (0.5, 0.8, 0.6)).apart
