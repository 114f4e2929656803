"""The front for a pull request."""

from __future__ import annotations

import pytest

from hwprune.errors import UsageError
from hwprune.records.record import read_record
from tests.report.helpers import EVIL


def test_markdown_shows_the_front_and_names_can_not_inject(run):
    from hwprune.report.markdown import markdown, plain
    from hwprune.report.writing import write_formats

    record = read_record(run)
    text = markdown(record)
    assert text.count("| trial ") + text.count("| **trial ") == len(record.data["front"]) and "| dense | 1.00x |" in text
    record.data["workload"]["name"] = EVIL + "](http://x)|`a`\n# b"
    record.data["notes"].append(EVIL)
    text = markdown(record)
    assert "<script" not in text.replace("\\<", "") and "\n# b" not in text and "](http" not in text.replace("\\]", "")
    assert plain("a [1, 2] b") == "a [1, 2] b" and plain("[a](b)") == "[a\\](b)"
    _, files = write_formats(run, "md")
    assert [path.name for path in files] == ["report.md"]
    with pytest.raises(UsageError, match="md"):
        write_formats(run, "mdd")
