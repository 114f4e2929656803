"""Workload functions for tests of the command line; some are broken on purpose."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import torch

from hwprune.workload import metrics
from tests.conftest import tiny_workload


def good(metric="agreement"):
    return tiny_workload(metric)


def raises():
    raise RuntimeError("no weights today")


def wrong_type():
    return {"model": None}


def empty():
    return dataclasses.replace(tiny_workload(), validation=[])


def nan_model():
    workload = tiny_workload()
    with torch.no_grad():
        workload.model.fc.weight.fill_(float("nan"))
    return workload


class _Killer:
    """A loader that kills the whole process by SIGKILL the n-th time it is read."""

    def __init__(self, batches, path, reads):
        self.batches, self.path, self.reads = batches, path, reads

    def __iter__(self):
        with open(self.path, "a") as stream:
            stream.write("x")
        if os.path.getsize(self.path) == self.reads:
            os.kill(os.getpid(), signal.SIGKILL)
        return iter(self.batches)


def killed(counter, reads):
    workload = tiny_workload()
    return dataclasses.replace(workload, validation=_Killer(workload.validation, counter, reads))


class _SlowAnswers:
    """Judges by the answers, and takes its time for each batch, so that others get a share."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, outputs, targets):
        time.sleep(self.seconds)
        return metrics.top1(outputs, targets)


def slow(seconds):
    """Several units, so that there are many recipes."""
    import hwprune
    from tests.conftest import randomise
    from tests.structure.test_branches import Blocks

    model = randomise(Blocks(False))
    data = torch.randn(60, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(data).argmax(1)
    batches = list(zip(data.split(20), labels.split(20), strict=True))
    return hwprune.Workload(
        name="slow", model=model, example_inputs=(data[:1],), calibration=batches[:1], validation=batches,
        test=batches, metric=metrics.Metric("top1", _SlowAnswers(float(seconds) / 9)),  # a trial is judged in nine parts
    )  # fmt: skip
