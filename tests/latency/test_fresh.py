"""Measuring in fresh processes: whose failure is whose."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest

from hwprune.errors import CandidateFailure, RunError
from hwprune.latency import fresh
from hwprune.latency.paired import combine_one

DENSE, SMALL = Path("dense.onnx"), Path("small.onnx")


class FakeBench:
    """A bench that refuses to load the reference for the ``refused``-th time, and all of ``broken``."""

    clock = "wall"

    combine = staticmethod(combine_one)

    def __init__(self, refused: int | None = None, broken: tuple[Path, ...] = ()) -> None:
        self.refused, self.broken, self.references = refused, broken, 0

    def load(self, key: str, path: Path, *, keep: bool = False) -> None:
        if key == "reference":
            self.references += 1
            if self.references == self.refused:
                raise CandidateFailure("load", "no memory left")
        elif path in self.broken:
            raise CandidateFailure("load", "unknown operator")

    def pair(self, *_: object) -> object:
        return object()


def remeasure(bench: FakeBench):
    @contextmanager
    def make():
        yield bench

    return fresh.remeasure({"small": SMALL}, DENSE, Path("example.npz"), make, processes=1)


@pytest.mark.parametrize("refused", [1, 2, 3])  # when the process starts, for its second session, and between two candidates
def test_a_dense_model_that_does_not_load_is_no_fault_of_a_candidate(refused, monkeypatch):
    monkeypatch.setattr(fresh, "SESSIONS", 2)
    with pytest.raises(RunError, match="dense model can't be loaded in a fresh process: no memory left"):
        remeasure(FakeBench(refused))


def test_candidates_that_fail_are_left_out():
    assert remeasure(FakeBench(broken=(DENSE, SMALL))) == {}
