"""What can be pruned, for Python and notebooks."""

from __future__ import annotations

import doctest

import torch
from torch import nn

import hwprune
from hwprune.pruning import inspection
from tests.conftest import tiny_workload


def test_axes_with_reasons_as_text_table_and_frame():
    found = hwprune.inspect(tiny_workload())
    frame = found.to_dataframe()
    free = frame[frame["frozen"].isna()]
    assert f"{len(free)} axes can be cut, {len(frame) - len(free)} can't" in str(found)
    row = free[free["name"] == "conv1.weight:0"].iloc[0]
    assert (row["role"], row["size"], bool(row["exact"])) == ("channel", 64, True)
    shown = found._repr_html_()
    assert "conv1.weight:0" in shown and "Left alone: " in shown and "model output" in shown
    assert repr(found) == str(found)


def test_names_inject_nothing():
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    workload = hwprune.Workload("<b>x</b>", net, (torch.randn(2, 8),), [], [], metric="agreement")
    assert "<b>x</b>" not in hwprune.inspect(workload)._repr_html_()


def test_the_docstrings_example_runs():
    found = doctest.DocTestFinder().find(inspection.inspect, globs={"hwprune": hwprune, "WORKLOAD": tiny_workload()})
    assert found[0].examples and doctest.DocTestRunner().run(found[0]).failed == 0
