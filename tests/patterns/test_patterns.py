"""One contract for all patterns, then each against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune import patterns
from hwprune.errors import UnknownNameError, UsageError

WEIGHT = ["unstructured", "2:4", "4:8", "1:4", "3:5", "block:4x1", "block:4x4", "block:2x3"]


def shape_for(name):
    return (12, 120, 3) if name != "block:2x3" else (12, 24, 2)


@pytest.mark.parametrize("name", [*WEIGHT, *patterns.AXIS_PATTERNS])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), sparsity=st.floats(0, 0.99))
def test_contract(name, seed, sparsity):
    pattern = patterns.get(name)
    assert pattern.name == name
    axis = patterns.is_axis(name)
    scores = torch.rand((37,) if axis else shape_for(name), generator=torch.Generator().manual_seed(seed))
    level = None if pattern.fixed_sparsity is not None else sparsity
    keep = pattern.keep_mask(scores, level)
    assert keep.dtype == torch.bool
    assert keep.shape == scores.shape
    assert keep.any()
    group = 1
    if name.startswith("block"):
        rows, columns = map(int, name[6:].split("x"))
        group = rows * columns
    total = scores.numel() // group
    wanted = round(pattern.fixed_sparsity * total) if level is None else min(round(level * total), total - 1)
    assert int((~keep).sum()) == wanted * group
    # Masking twice changes nothing: what was removed scores 0, what stays scores more.
    again = pattern.keep_mask(torch.where(keep, scores + 1, torch.zeros(())), level)
    assert torch.equal(again, keep)


def test_unstructured_keeps_the_highest():
    keep = patterns.get("unstructured").keep_mask(torch.tensor([[3.0, 1.0], [2.0, 5.0]]), 0.5)
    assert keep.tolist() == [[True, False], [False, True]]


def test_ties_keep_the_lower_index():
    assert patterns.get("channel").keep_mask(torch.ones(4), 0.5).tolist() == [True, True, False, False]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 2), (3, 5)])
def test_n_of_m_maximises_the_kept_scores_of_every_group(n, m):
    """Against all ways of keeping n of m, along the input channels of a convolution."""
    scores = torch.rand(3, 2 * m, 2, 2, generator=torch.Generator().manual_seed(0))
    keep = patterns.get(f"{n}:{m}").keep_mask(scores)
    for out, row, column in itertools.product(range(3), range(2), range(2)):
        for start in (0, m):
            group = scores[out, start : start + m, row, column]
            kept = keep[out, start : start + m, row, column]
            best = max(sum(group[list(chosen)].tolist()) for chosen in itertools.combinations(range(m), n))
            assert int(kept.sum()) == n
            assert float(group[kept].sum()) == pytest.approx(best)


def test_n_of_m_on_a_vector():
    assert patterns.get("2:4").keep_mask(torch.tensor([1.0, 4, 3, 2])).tolist() == [False, True, True, False]


def test_blocks_are_whole():
    scores = torch.rand(4, 6, 2, generator=torch.Generator().manual_seed(1))
    keep = patterns.get("block:2x3").keep_mask(scores, 0.5)
    sums = {}
    for r, c, k in itertools.product(range(2), range(2), range(2)):
        block = (slice(2 * r, 2 * r + 2), slice(3 * c, 3 * c + 3), k)
        assert keep[block].all() or not keep[block].any()
        sums[r, c, k] = (float(scores[block].sum()), bool(keep[block].all()))
    kept = [total for total, stays in sums.values() if stays]
    gone = [total for total, stays in sums.values() if not stays]
    assert len(kept) == len(gone) == 4
    assert min(kept) > max(gone)


@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [("2:4", (8, 6), "not a multiple of 4"), ("block:4x4", (8, 6), "don't divide"), ("block:4x1", (8,), "outputs and inputs")],
)
def test_inadmissible_shapes(name, shape, text):
    pattern = patterns.get(name)
    assert text in pattern.inadmissible(shape)
    with pytest.raises(UsageError, match=text):
        pattern.keep_mask(torch.rand(shape), None if ":4" in name and "block" not in name else 0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_scores_must_be_finite_and_positive(bad):
    with pytest.raises(UsageError):
        patterns.get("unstructured").keep_mask(torch.tensor([1.0, bad]), 0.5)


@pytest.mark.parametrize("sparsity", [None, -0.1, 1.0, float("nan")])
def test_sparsity_must_fit(sparsity):
    with pytest.raises(UsageError, match="sparsity"):
        patterns.get("channel").keep_mask(torch.ones(4), sparsity)


def test_n_of_m_has_no_other_sparsity():
    with pytest.raises(UsageError, match=r"0\.5"):
        patterns.get("2:4").keep_mask(torch.ones(4), 0.75)


@pytest.mark.parametrize("name", ["4:4", "0:4", "5:4", "block:1x1", "block:0x4"])
def test_senseless_members_of_a_family(name):
    with pytest.raises(UsageError):
        patterns.get(name)


def test_unknown_names_list_the_choices():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'unstructured'.*channel"):
        patterns.get("unstructred")
