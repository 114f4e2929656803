"""Fixtures of this folder."""

from __future__ import annotations

import pytest

from hwprune.records import record


@pytest.fixture(scope="module")
def number(finished_run):
    return record.read_record(finished_run).data["front"][0]["trial"]
