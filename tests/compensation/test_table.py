"""Names of compensations."""

from __future__ import annotations

import pytest

from hwprune.compensation import canonical, parse
from hwprune.errors import UnknownNameError, UsageError


def test_names_are_joined_by_plus():
    assert [one.name for one in parse("batchnorm+obs")] == ["obs", "batchnorm"]
    assert canonical("batchnorm+sequential+obs") == "obs+sequential+batchnorm"
    assert parse("none") == []
    with pytest.raises(UnknownNameError, match=r"joined by \+"):
        parse("obs+magic")
    with pytest.raises(UsageError, match="exclude each other"):
        parse("obs+lstsq")
