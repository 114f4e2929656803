"""Fixtures of this folder."""

from __future__ import annotations

import pytest

from tests.calibration.test_collect import workload_of
from tests.compensation.helpers import Plain, images
from tests.conftest import randomise


@pytest.fixture
def plain():
    return workload_of(randomise(Plain()), (images(48),), batch=24)  # all positions fit into the rows of the statistics
