"""The algebra against brute force: unified dims must have equal keep masks whatever is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprune.structure.dim_masks import DimMasks
from hwprune.structure.dims import ONE, Concat, MismatchError, Product, Space


def random_keeps(space, dims, rng):
    """A random keep mask for every leaf that isn't frozen."""
    leaves = {leaf for dim in dims for leaf in space.leaves(dim)}
    return {leaf.number: rng.random(leaf.size) < 0.5 for leaf in sorted(leaves, key=lambda x: x.number) if not space.frozen(leaf)}


@st.composite
def structures(draw, space, size, depth=0):
    """A random dim of exactly this size."""
    kinds = ["leaf"]
    if depth < 3 and size > 1:
        kinds += ["concat"]
        if any(size % k == 0 for k in range(2, size)):
            kinds += ["product"]
    kind = draw(st.sampled_from(kinds))
    if kind == "concat":
        cut = draw(st.integers(1, size - 1))
        return Concat((draw(structures(space, cut, depth + 1)), draw(structures(space, size - cut, depth + 1))))
    if kind == "product":
        outer = draw(st.sampled_from([k for k in range(2, size) if size % k == 0]))
        return Product((draw(structures(space, outer, depth + 1)), draw(structures(space, size // outer, depth + 1))))
    return space.leaf(size)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from([2, 4, 6, 8, 12, 16, 24, 36]), st.integers(0, 2**31))
def test_unified_dims_always_keep_the_same_indices(data, size, seed):
    space = Space()
    dims = [data.draw(structures(space, size)) for _ in range(3)]
    space.unify(dims[0], dims[1], "first")
    space.unify(dims[1], dims[2], "second")
    keeps = random_keeps(space, dims, np.random.default_rng(seed))
    masks = [DimMasks(space).keep(dim, keeps) for dim in dims]
    counts = {number: int(mask.sum()) for number, mask in keeps.items()}
    for dim, mask in zip(dims, masks, strict=True):
        assert mask.shape == (size,)
        np.testing.assert_array_equal(mask, masks[0])
        assert DimMasks(space).kept(dim, counts) == mask.sum()


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([4, 6, 8, 12, 24]), st.integers(0, 2**31))
def test_split_parts_and_factors_compose_to_the_whole(data, size, seed):
    space = Space()
    dim = data.draw(structures(space, size))
    cut = data.draw(st.integers(0, size))
    try:
        parts = space.split(dim, [cut, size - cut])
    except MismatchError:
        parts = [dim]
    outer = data.draw(st.sampled_from([k for k in range(1, size + 1) if size % k == 0]))
    try:
        factors = space.factor(dim, [outer, size // outer])
    except MismatchError:
        factors = [dim]
    keeps = random_keeps(space, [dim], np.random.default_rng(seed))
    whole = DimMasks(space).keep(dim, keeps)
    np.testing.assert_array_equal(np.concatenate([DimMasks(space).keep(part, keeps) for part in parts]), whole)
    expected = np.ones(1, bool)
    for factor in factors:
        expected = np.kron(expected, DimMasks(space).keep(factor, keeps)).astype(bool)
    np.testing.assert_array_equal(expected, whole)


def test_fused_qkv_against_three_equal_parts():
    """Product(3, heads, d) meets Concat(a, b, c): the three share heads and d, and 3 can't be cut."""
    space = Space()
    weight = space.leaf(36)
    three, heads, depth = space.factor(weight, [3, 4, 3])
    a, b, c = (space.leaf(12) for _ in range(3))
    space.unify(weight, Concat((a, b, c)), "cat")
    keep_heads = np.array([True, False, True, True])
    (leaf,) = space.leaves(heads)
    mask = DimMasks(space).keep(weight, {leaf.number: keep_heads})
    np.testing.assert_array_equal(mask, np.tile(np.repeat(keep_heads, 3), 3))
    assert list(space.leaves(three)) == []
    assert space.resolve(a) == space.resolve(b) == space.resolve(Product((heads, depth)))


def test_index_names_the_owner_of_each_position():
    space = Space()
    heads, depth, other = space.leaf(2), space.leaf(3), space.leaf(2)
    dim = Concat((Product((heads, depth)), other))
    np.testing.assert_array_equal(DimMasks(space).index(dim, heads), [0, 0, 0, 1, 1, 1, -1, -1])
    np.testing.assert_array_equal(DimMasks(space).index(dim, depth), [0, 1, 2, 0, 1, 2, -1, -1])
    np.testing.assert_array_equal(DimMasks(space).index(dim, other), [-1] * 6 + [0, 1])


def test_what_cannot_be_matched_is_frozen_with_the_reason():
    space = Space()
    a, b = Product((space.leaf(2), space.leaf(3))), Product((space.leaf(3), space.leaf(2)))
    space.unify(a, b, "add (add_7)")
    for leaf in [*space.leaves(a), *space.leaves(b)]:
        assert "add (add_7)" in space.frozen(leaf)


def test_marks_follow_refinement_and_merging():
    space = Space()
    dim, other = space.leaf(6), space.leaf(6)
    space.freeze(dim, "model output")
    space.mark_inexact(other, "softmax")
    parts = space.split(dim, [2, 4])
    space.unify(dim, other, "add")
    for part in parts:
        for leaf in space.leaves(part):
            assert space.frozen(leaf) == "model output"
            assert space.inexact(leaf) == "softmax"


def test_size_one_is_nothing():
    space = Space()
    assert space.leaf(1) == ONE
    assert space.factor(space.leaf(6), [6, 1])[1] == ONE
    with pytest.raises(ValueError, match="-1"):
        space.leaf(-1)
