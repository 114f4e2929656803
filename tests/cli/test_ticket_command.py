"""hwprune ticket: run, interrupted, resumed."""

from __future__ import annotations

import itertools
import json

from hwprune.cli.main import main
from hwprune.recovery.tickets import drawing
from hwprune.recovery.tickets.course import FILE


def test_the_command(tmp_path, capsys):
    words = ["--rounds", "1", "--share", "0.5", "--seeds", "2", "--epochs", "0.2", "--quiet"]
    assert main(["ticket", "demo:digits-vit", *words, "--out", str(tmp_path / "out")]) == 0
    assert "winning ticket" in capsys.readouterr().out
    assert main(["ticket", "demo:digits-vit", *words, "--out", str(tmp_path / "out")]) == 2  # it is not empty
    assert main(["ticket", "demo:digits-vit", *words, "--resume"]) == 2  # where?
    assert main(["ticket", "demo:digits-vit", *words, "--resume", "--out", str(tmp_path / "out")]) == 2  # it is finished
    assert "no unfinished drawing" in capsys.readouterr().err
    assert main(["ticket", "tests/workloads.py:good", *words]) == 2  # it has no train data
    assert "train=loader" in capsys.readouterr().err


def test_ctrl_c_and_resume(tmp_path, capsys, monkeypatch):
    words = ["ticket", "demo:digits-vit", "--rounds", "2", "--share", "0.5", "--seeds", "2", "--epochs", "0.2", "--json"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    expected = json.loads(capsys.readouterr().out)
    real, count = drawing._trained, itertools.count()

    def stop(*given):
        if next(count) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(drawing, "_trained", stop)
    assert main([*words, "--out", str(tmp_path / "out")]) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.setattr(drawing, "_trained", real)
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "unfinished" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "out"), "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert not (tmp_path / "out" / FILE).exists()
