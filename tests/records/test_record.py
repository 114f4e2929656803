"""Records that are broken."""

from __future__ import annotations

import pytest

from hwprune.errors import UsageError
from hwprune.records.record import read_record


@pytest.mark.parametrize(
    ("content", "text"), [("[]", "schema 1"), ('{"schema": 2}', "schema 1"), ('{"schema": 1}', "lacks"), ("{", "JSON")]
)
def test_broken_records_say_so(tmp_path, content, text):
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(UsageError, match=text):
        read_record(tmp_path)
