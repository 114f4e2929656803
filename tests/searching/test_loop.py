"""When a search ends."""

from __future__ import annotations

import json

import pytest

import hwprune
from hwprune.common.files import sha256
from hwprune.errors import UsageError
from hwprune.latency import fingerprint
from hwprune.records import target as targets
from tests.conftest import tiny_workload


def recipes_of_tiny():
    """One unit of 64 channels at every multiple of what this CPU's kernels work in, by two criteria."""
    return 2 * (64 // targets.load("cpu").multiple(fingerprint.isa()) - 1)


def test_uniform_sweep_ends_when_it_is_done(tmp_path):
    result = hwprune.search(tiny_workload(), trials=40, sampler="uniform", space="structured", out=tmp_path / "run")
    assert 3 <= len(result.trials) <= recipes_of_tiny()
    assert any("uniform sweep is finished" in note for note in result.notes)
    assert {t.origin for t in result.trials} == {"uniform"}
    frame = result.to_dataframe()
    assert len(frame) == len(result.trials)
    assert {"measured"} <= set(frame["state"]) <= {"measured", "stopped"}  # on a busy machine one may be surely beaten


def test_exhausted_space_ends_the_search(tmp_path):
    result = hwprune.search(tiny_workload(), trials=40, sampler="random", space="structured", out=tmp_path / "run", max_drop=0.9)
    assert len({t.recipe.digest for t in result.trials}) == len(result.trials) == recipes_of_tiny()
    assert any("exhausted" in note for note in result.notes)
    best = result.best(max_drop=0.9)
    exported = best.export(tmp_path / "out")
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["files"]["model.onnx"] == sha256(exported / "model.onnx")


def test_warm_start_that_was_interrupted_is_completed_once(store):
    space, opened = store
    first = opened(True)
    for sparsity in (0.25, 0.5):
        first.enqueue(space.uniform(sparsity, "l1"), "uniform", again=False)
    second = opened(False)
    for sparsity in (0.25, 0.5, 0.75):
        second.enqueue(space.uniform(sparsity, "l1"), "uniform", again=False)
    assert second.waiting == 3


def test_time_is_over_before_the_first_trial(tmp_path):
    result = hwprune.search(tiny_workload(), trials=0, time_s=1e-6, out=tmp_path / "run")
    assert result.trials == ()
    assert result.front == ()
    assert any("No candidate could be measured" in note for note in result.notes)
    with pytest.raises(UsageError, match="front is empty"):
        result.best()
