"""A file must compute what its module computes."""

from __future__ import annotations

import pytest

from hwprune.errors import CandidateFailure
from tests.searching.helpers import recipe_of


def test_a_file_that_computes_something_else_is_never_a_finalists(evaluator, monkeypatch):
    trial = evaluator.measure(evaluator.score(93, recipe_of(evaluator, 2), "test"))
    before = (evaluator.files.folder(93) / "model.onnx").read_bytes()
    monkeypatch.setattr(evaluator.scorer, "tolerance", -1.0)
    with pytest.raises(CandidateFailure, match="differs from PyTorch"):
        evaluator.refine(trial, "obs+batchnorm+sequential")
    assert (evaluator.files.folder(93) / "model.onnx").read_bytes() == before
    monkeypatch.undo()
    better = evaluator.refine(trial, "obs+batchnorm+sequential")
    assert better is None or better.divergence.value < trial.divergence.value
