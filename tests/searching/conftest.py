"""Fixtures of this folder."""

from __future__ import annotations

import dataclasses

import pytest

from hwprune.latency.bench import Bench
from hwprune.latency.paired import Settings
from hwprune.latency.source import Measured
from hwprune.pruning.pruner import Pruner
from hwprune.records import target as targets
from hwprune.searching.evaluating.dense import EXAMPLE
from hwprune.searching.evaluating.evaluator import Evaluator
from hwprune.searching.space import fitting, space_file
from hwprune.searching.study.store import Store
from tests.conftest import tiny_workload


@pytest.fixture
def store(tmp_path):
    """A study's search space, and what opens the study (True: makes it)."""
    space = fitting.build(space_file.load("structured"), Pruner(tiny_workload()), targets.load("cpu"), "avx512")

    def opened(create):
        return Store(f"sqlite:///{tmp_path / 'study.db'}", space, create=create)

    return space, opened


@pytest.fixture(scope="session")
def evaluator(tmp_path_factory):
    """An evaluator of a tiny classifier whose dense model is prepared; monkeypatch what must differ."""
    run = tmp_path_factory.mktemp("early") / "run"
    target = targets.load("cpu")
    workload = tiny_workload("top1")
    # Enough examples for a first look at some of them.
    batches = [pair for _ in range(20) for pair in workload.validation]
    pruner = Pruner(dataclasses.replace(workload, validation=batches))
    with Bench(target) as bench:
        made = Evaluator(pruner, bench, Measured(bench, run / "baseline" / EXAMPLE, Settings(limit_s=0.05)), target, run)
        made.dense.prepare(made.source)
        yield made
