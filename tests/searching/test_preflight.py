"""What is told before a search begins."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from hwprune.errors import UsageError
from hwprune.searching import preflight
from tests.conftest import tiny_workload


def test_a_share_can_not_drop_by_more_than_one():
    with pytest.raises(UsageError, match=r"--max-drop 5 is more than all of top1.*did you mean 5%\?"):
        preflight.check_limit(5, tiny_workload("top1"))
    preflight.check_limit(0.05, tiny_workload("top1"))
    preflight.check_limit(None, tiny_workload("top1"))
    preflight.check_limit(5, dataclasses.replace(tiny_workload("top1"), metric="perplexity"))


@pytest.mark.parametrize("given", [None, "0"])
def test_onnx_runtime_sends_nothing_unless_it_is_asked_to(given):
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    line = [sys.executable, "-c", "import hwprune, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"]
    told = subprocess.run(line, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    assert told == (given or "1")
