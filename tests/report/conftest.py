"""Fixtures of this folder."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def run(finished_run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copyfile(finished_run / "record.json", folder / "record.json")
    return folder
