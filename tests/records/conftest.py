"""Fixtures of this folder."""

from __future__ import annotations

import pytest

from hwprune.records import target as targets
from tests.latency.helpers import PROFILE


@pytest.fixture
def device(tmp_path):
    """A target that is described in a file."""
    (tmp_path / "device.toml").write_text(PROFILE)
    return targets.load(str(tmp_path / "device.toml"))
