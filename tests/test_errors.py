"""Errors as a part of a sentence."""

from __future__ import annotations

import pytest

from hwprune.errors import CandidateFailure, RunError, UsageError, described, first_line


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


def test_ctrl_c_that_a_library_has_made_an_error_of_is_ctrl_c_again():
    """PyTorch does that while it exports a model."""
    for swallowed in (
        TypeError(
            "empty_strided(): argument 'size' failed to unpack the object at pos 1 with error \"KeyboardInterrupt: <EMPTY MESSAGE>"
        ),
        ValueError("no"),
    ):
        with pytest.raises(KeyboardInterrupt if "Keyboard" in str(swallowed) else RunError):
            try:
                raise swallowed
            except Exception as error:
                raise RunError(f"the model can't be exported: {error}") from error
    with pytest.raises(KeyboardInterrupt):
        try:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt as cause:
                raise ValueError("in a callback") from cause
        except ValueError as error:
            raise CandidateFailure("export", str(error)) from error
    assert str(UsageError("wrong", ["a", "b"])) == "wrong\n  - a\n  - b"
