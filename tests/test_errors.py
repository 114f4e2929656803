"""Errors as a part of a sentence."""

from __future__ import annotations

import pytest

from hwprune.errors import described, first_line


@pytest.mark.parametrize(
    ("error", "line", "full"),
    [
        (ValueError("too wide\nand more"), "too wide", "ValueError: too wide"),
        (KeyError("width"), "'width'", "KeyError: 'width'"),
        (AssertionError(), "AssertionError", "AssertionError"),
        (RuntimeError("\n  \n"), "RuntimeError", "RuntimeError"),
    ],
)
def test_an_error_has_one_line_also_where_it_has_no_text(error, line, full):
    assert (first_line(error), described(error)) == (line, full)
