"""The dense model and a candidate side by side."""

from __future__ import annotations

from hwprune.compensation import Context, lockstep
from hwprune.pruning.pruner import Pruner


def test_examples_are_limited_by_memory(plain, monkeypatch):
    pruner = Pruner(plain)
    context = Context(pruner.graph.module, pruner._calibration, pruner.graph.matrices)
    assert sum(len(inputs[0]) for inputs in lockstep.choose_batches(context)) == 48
    per_example = 2 * 4 * 3 * 12 * 12
    few = lockstep.choose_batches(context, limit=per_example)
    assert sum(len(inputs[0]) for inputs in few) == 24  # at least the first batch
    monkeypatch.setattr(lockstep, "BATCH", 8)
    some = lockstep.choose_batches(context, limit=16 * 2 * 64 * 12 * 12 * 4)
    assert 8 <= sum(len(inputs[0]) for inputs in some) < 48
