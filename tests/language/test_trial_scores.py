"""Whole allocations, against models of transformers that are changed by hand."""

from __future__ import annotations

import pytest
import torch

from hwprune.language.trial_scores import TrialScorer
from tests.language.test_part_options import by_hand, changed
from tests.streaming.helpers import losses, whole


@pytest.fixture(scope="module")
def scorer(solved, tmp_path_factory):
    return TrialScorer(solved.source, solved.texts.held, solved.choices, solved.store, tmp_path_factory.mktemp("scorer"))


def test_the_dense_model_differs_from_itself_by_nothing(solved, scorer):
    score = scorer.score([(0, 0)] * 3)
    assert score.divergence == pytest.approx(0, abs=1e-6)
    assert score.perplexity == pytest.approx(float(losses(whole(solved.folder), solved.texts.held).mean().exp()), rel=1e-5)


def test_an_allocation_is_the_model_with_all_of_it(solved, scorer):
    score = scorer.score([(1, 0), (2, 1), (0, 3)])
    allocation = {0: ["attention-1"], 1: ["attention-0", "mlp-32"], 2: ["mlp-0"]}
    assert score.divergence == pytest.approx(by_hand(solved, allocation, solved.texts.held), rel=1e-3)
    assert score.perplexity == pytest.approx(float(losses(changed(solved, allocation), solved.texts.held).mean().exp()), rel=1e-4)


def test_a_block_without_both_is_no_block(scorer):
    found = scorer.tensors([(0, 0), (2, 3), (0, 1)])
    assert len(found) == 2
    assert found[1]["mlp.down_proj.weight"].shape == (32, 32) and isinstance(found[0]["mlp.down_proj.weight"], torch.Tensor)
