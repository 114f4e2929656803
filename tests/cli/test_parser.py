"""A wrong command line: one message, what was probably meant, exit code 2."""

from __future__ import annotations

import pytest

from hwprune.cli.main import build_parser
from tests.cli.test_main import run


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["serch"], "there is no command 'serch'; did you mean search?"),
        (["xyzzy"], "there is no command 'xyzzy'\n"),
        ([], "name a command"),
        (["search", "--trails", "40"], "unknown: --trails; did you mean --trials?"),
        (["export", "runs/x", "--formt=onnx"], "did you mean --format?"),
        (["search", "--max-drop", "1pt"], "'1pt' is not a drop: write 0.01, or 1%"),
        (["search", "--time", "soon"], "'soon' is not a time"),
    ],
)
def test_a_wrong_command_line(capsys, arguments, text):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out
    assert text in err
    assert "usage:" not in err and len(err.strip().splitlines()) == 2
    assert "--help" in err.splitlines()[-1]


def test_a_drop_in_per_cent():
    from hwprune.cli.arguments import drop

    assert drop("1%") == drop("0.01") == 0.01
    assert drop("2.5%") == 0.025


def test_words_may_stand_after_options(capsys):
    options = build_parser().parse_args(["inspect", "demo:digits", "--json", "metric=top1", "--shape", "1x8", "batch=2"])
    assert options.words == ["metric=top1", "batch=2"]
    with pytest.raises(SystemExit):
        build_parser().parse_args(["inspect", "demo:digits", "--json", "metric"])
    assert "unknown: metric" in capsys.readouterr().err
