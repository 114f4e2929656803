"""Perplexity is that of all counted tokens together, as `torch.nn.functional.cross_entropy` averages them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hwprune.errors import CandidateFailure, WorkloadError
from hwprune.workload import metrics, scoring

PERPLEXITY = metrics.get("perplexity")
CLASSES = 11


def batches(*lengths, positions=6, seed=0):
    """One batch an item of ``lengths``: how many leading targets of each example count."""
    draw = torch.Generator().manual_seed(seed)
    outputs, targets = [], []
    for counts in lengths:
        outputs.append((3 * torch.randn(len(counts), positions, CLASSES, generator=draw),))
        labels = torch.randint(CLASSES, (len(counts), positions), generator=draw)
        for row, count in enumerate(counts):
            labels[row, count:] = -100
        targets.append(labels)
    return outputs, targets


def together(outputs, targets):
    logits = torch.cat([batch[0].reshape(-1, CLASSES) for batch in outputs])
    return math.exp(float(F.cross_entropy(logits, torch.cat([t.reshape(-1) for t in targets]), ignore_index=-100)))


@pytest.mark.parametrize(
    "lengths",
    [
        [[6, 6, 6, 6]],
        [[6, 1, 3, 2], [5, 6, 1, 1]],
        [[6, 0, 3, 0], [1, 4]],  # examples without a counted token count for nothing
        [[0, 0], [4, 2]],
        [[1]],
    ],
)
def test_tokens_are_averaged_not_examples(lengths):
    outputs, targets = batches(*lengths)
    measured = scoring.score(PERPLEXITY, outputs, targets)
    assert measured.value == pytest.approx(together(outputs, targets), rel=1e-5)
    assert measured.samples == sum(count > 0 for counts in lengths for count in counts)
    assert measured.ci_low <= measured.value <= measured.ci_high


def test_it_does_not_depend_on_how_tokens_are_divided_into_batches():
    outputs, targets = batches([6, 1, 3, 2, 0, 5])
    parts = [(outputs[0][0][i : i + 2],) for i in (0, 2, 4)], [targets[0][i : i + 2] for i in (0, 2, 4)]
    whole, divided = scoring.score(PERPLEXITY, outputs, targets), scoring.score(PERPLEXITY, *parts)
    assert (divided.value, divided.ci_low, divided.ci_high) == pytest.approx((whole.value, whole.ci_low, whole.ci_high))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Examples are drawn with their tokens: the interval of exp(ratio) holds the whole population's value 95 times of 100.

    Long examples have larger losses, so that the mean of examples is far from that of tokens.
    """
    draw = torch.Generator().manual_seed(1)
    counts = torch.randint(1, 30, (20_000,), generator=draw)
    losses = 1 + counts / 30 + 0.3 * torch.randn(len(counts), generator=draw).double()
    truth = math.exp(float((losses * counts).sum() / counts.sum()))
    held = 0
    for _ in range(600):
        rows = torch.randint(len(counts), (150,), generator=draw)
        measured = PERPLEXITY.reduce(losses[rows], counts[rows])
        held += measured.ci_low <= truth <= measured.ci_high
    assert 0.92 <= held / 600 <= 0.98


@pytest.mark.parametrize("lengths", [[[0, 0]], [[0], [0, 0]]])
def test_a_split_without_a_counted_token_is_refused(lengths):
    with pytest.raises(WorkloadError, match="no counted target"):
        scoring.score(PERPLEXITY, *batches(*lengths))


def test_scores_of_a_users_metric_are_averaged_by_example():
    """One score an example, all of one weight, exp or not."""
    own = metrics.Metric("mine", lambda outputs, targets: outputs[:, 0, 0].abs(), exp=True)
    outputs, targets = batches([6, 0, 3])
    scores = outputs[0][0][:, 0, 0].abs().double()
    measured = scoring.score(own, outputs, targets)
    half = 1.96 * float(scores.std()) / math.sqrt(3)
    assert measured.value == pytest.approx(math.exp(float(scores.mean())))
    assert (math.log(measured.ci_low), math.log(measured.ci_high)) == pytest.approx(
        (float(scores.mean()) - half, float(scores.mean()) + half)
    )
    assert measured.samples == 3


def test_a_candidate_that_is_beyond_all_numbers_fails_and_ends_no_search():
    """exp of a loss above 709 is no number of 64 bits."""
    outputs, targets = batches([6, 6])
    with pytest.raises(CandidateFailure, match="perplexity"):
        scoring.score(PERPLEXITY, [(1e5 * outputs[0][0],)], targets)
