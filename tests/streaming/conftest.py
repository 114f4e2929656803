from __future__ import annotations

import pytest

from tests.streaming.helpers import llama, text


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    return text(tmp_path_factory.mktemp("text") / "words.txt")
