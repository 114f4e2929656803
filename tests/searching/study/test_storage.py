"""Storages that can't be opened, and what is said of them."""

from __future__ import annotations

import pytest

from hwprune.errors import HwpruneError
from hwprune.searching.study.storage import load_study, storage_errors


@pytest.mark.parametrize(
    "storage",
    [
        "postgresql://me:geheim@127.0.0.1:1/db",  # nobody listens
        "postgresql://me@127.0.0.1:1/db?password=geheim",
        "nodriver://me:geheim@127.0.0.1/db",
    ],
)
def test_no_error_shows_the_password(storage):
    with pytest.raises(HwpruneError) as error, storage_errors(storage):
        load_study(storage)
    shown = f"{error.value!s} {error.value!r} {error.value.__cause__}"
    assert "geheim" not in shown and "***" in str(error.value)
