"""Measurements are checked at birth."""

from __future__ import annotations

import math

import pytest

from hwprune.records.measurement import Measurement


def test_measurements_are_checked_at_birth():
    with pytest.raises(ValueError, match="finite"):
        Measurement(math.nan, "x", 0, 1, 3)
    with pytest.raises(ValueError, match="upside down"):
        Measurement(1.0, "x", 2, 1, 3)
