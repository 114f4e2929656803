"""Workloads of all shapes are scored as by hand, or refused where nothing says how. The long version is benchmarks/fuzz_workloads.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def fuzzing():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("fuzz_workloads", FOLDER / "fuzz_workloads.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["fuzz_workloads"] = module  # where dataclasses look
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


@pytest.mark.parametrize("start", range(0, 500, 100))
def test_a_slice_of_the_fuzzing(fuzzing, start):
    fine = {fuzzing.RIGHT, fuzzing.REFUSED, fuzzing.GUESSED}
    found = {seed: fuzzing.examine(seed) for seed in range(start, start + 100)}
    assert {seed: words for seed, words in found.items() if words[1] not in fine} == {}
    assert sum(words[1] == fuzzing.RIGHT for words in found.values()) > 80
