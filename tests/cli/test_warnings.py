"""hwprune's own warnings are shown on the command line, in one line; libraries' only where they are asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from hwprune import errors
from hwprune.cli import main as entry

WARNING = """
import argparse, sys, warnings
from hwprune.cli import main as entry
from hwprune.errors import HwpruneWarning
def run(options):
    for number in (1, 1, 2):
        warnings.warn(f"no checkpoint {number}", HwpruneWarning)
    warnings.warn("of a library", FutureWarning)
    return 0
from hwprune.cli import lists
lists.run = run
sys.exit(entry.main(["targets"]))
"""


def told(*flags, **environment):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONWARNINGS", "HWPRUNE_DEBUG")
    } | environment
    ran = subprocess.run([sys.executable, *flags, "-c", WARNING], capture_output=True, text=True, env=environment)
    return ran.returncode, ran.stderr.splitlines()


def test_own_warnings_are_one_line_each_and_libraries_are_quiet():
    assert told() == (0, ["hwprune: warning: no checkpoint 1", "hwprune: warning: no checkpoint 2"])


@pytest.mark.parametrize(
    ("flags", "environment"), [(["-W", "default"], {}), ([], {"PYTHONWARNINGS": "default"}), ([], {"HWPRUNE_DEBUG": "1"})]
)
def test_libraries_warn_where_they_are_asked_to(flags, environment):
    code, lines = told(*flags, **environment)
    assert code == 0
    assert "hwprune: warning: no checkpoint 2" in lines
    assert any("FutureWarning: of a library" in line for line in lines)


def test_the_user_may_silence_ours():
    assert told("-W", "ignore") == (0, [])


def test_filters_are_as_before_afterwards(monkeypatch):
    before = list(warnings.filters), warnings.showwarning
    assert entry.main(["patterns"]) == 0
    assert (list(warnings.filters), warnings.showwarning) == before


def test_a_checkpoint_that_can_t_be_written_is_a_warning_of_ours(tmp_path, monkeypatch):
    """A full disk ends no training, but there is nothing to go on from: that is told."""
    from hwprune.recovery.loop import checkpoint
    from hwprune.recovery.loop.resuming import Resuming

    class Anything:
        """A training and its state, as far as a checkpoint asks for them."""

        checkpoint_s, best, mean, history, losses = 0.0, {}, {}, [], []

        def __getattr__(self, name):
            return self if name in ("plan", "after") else 0

        def to_json(self):
            return {}

        def weights(self):
            return {}

        def sparsifier_state(self):
            return {}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.Checkpoint, "write", full)
    monkeypatch.setattr("hwprune.recovery.loop.resuming.optimizer_tensors", lambda _: {})
    keeper = Resuming(Anything(), Anything(), tmp_path, keep=True, start="", started=0.0)
    with pytest.warns(errors.HwpruneWarning, match="no checkpoint of the training could be written"):
        keeper.save(None, now=True)
