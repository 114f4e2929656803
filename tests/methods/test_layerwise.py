"""Options of one unit: counts, forms, errors against their definition; the permutation search."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hwprune
from hwprune import patterns
from hwprune.errors import UsageError
from hwprune.layers.part import READS, Part
from hwprune.layers.statistics import LayerStatistics
from hwprune.methods import layerwise, method
from hwprune.patterns import permutation
from hwprune.pruning.pruner import Pruner
from hwprune.second_order import least_squares
from tests.conftest import tiny_workload


def part(shape, groups=1, seed=0, centred=False):
    """A layer of that weight shape with correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    d = torch.Size(shape[1:]).numel()
    x = torch.randn(groups, 8 * d, d, generator=generator) @ torch.randn(groups, d, d, generator=generator) + 1
    mean = x.mean(dim=1, keepdim=True)
    covariance = (x - mean).mT @ (x - mean) / x.shape[1]
    known = LayerStatistics(
        groups, x.shape[1], shape[0], shape[1], covariance=covariance, mean=mean[:, 0], input_square=x.square().mean(dim=1)
    )
    weight = torch.randn(shape, generator=generator)
    return Part("w", READS, weight, 1, torch.arange(shape[1])[:, None], groups, centred, known)


SHAPES = [((8, 12), 1), ((8, 4, 3, 3), 1), ((8, 4, 1, 2), 4), ((6, 1, 3, 3), 6), ((4, 20, 3, 3), 1)]


@pytest.mark.parametrize("name", ["obs", "sparsegpt", "wanda", "l1"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize(
    "form", ["unstructured", "unstructured:row", "2:4", "1:4", "block:2x2", "block:1x4", "block:4x4", "block:2x5"]
)
def test_masks_have_exact_counts_and_forms(name, shape, groups, form):
    pattern = patterns.get(form)
    if pattern.inadmissible(shape):
        pytest.skip("does not fit")
    one = part(shape, groups)
    for level in [None] if pattern.fixed_sparsity is not None else [0.3, 0.77]:
        (keep,) = method.get(name).keeps([one], pattern, [level])
        assert keep.shape == shape
        out, inner = shape[:2]
        if pattern.group is not None:
            n, m = pattern.group
            counts = keep.movedim(1, -1).reshape(-1, inner // m, m).sum(dim=2)
            assert (counts == n).all()
        elif form == "unstructured:row":
            per_row = keep.reshape(out, -1).shape[1]
            assert ((~keep).reshape(out, -1).sum(dim=1) == round(level * per_row)).all()
        else:
            r, c = pattern.block
            blocks = keep.reshape(out // r, r, inner // c, c, -1).movedim(2, 1).flatten(2, 3)
            assert (blocks.all(dim=2) | ~blocks.any(dim=2)).all()
            total = keep.numel() // (r * c)
            assert int((~keep).sum()) == round(level * total) * r * c


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("compensation", ["obs", "lstsq"])
@pytest.mark.parametrize("centred", [False, True])
def test_errors_are_the_true_change_of_the_outputs(shape, groups, compensation, centred):
    """tr((W' - W) H (W' - W)^T) over the outputs' variance, on covariance if a constant can be added."""
    one = part(shape, groups, centred=centred)
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.5
    solution = layerwise.masked(one, keep, compensation)
    assert not solution.weight[~keep].any()
    covariance, mean = one.statistics.covariance.double(), one.statistics.mean.double()[:, :, None]
    h = covariance if centred else covariance + mean * mean.mT
    old, new = (w.double().reshape(groups, shape[0] // groups, -1) for w in (one.tensor, solution.weight))
    change = new - old
    expected = float(((change @ h) * change).sum() / ((old @ h) * old).sum())
    assert solution.error == pytest.approx(expected, rel=1e-3)
    assert solution.error < layerwise.removal_error(one, keep, of_axis=False)
    if centred:
        shift = -(change @ mean).reshape(-1)
        assert torch.allclose(solution.shift.double(), shift, atol=1e-4)
    else:
        assert solution.shift is None


def test_exact_least_squares_is_never_worse_than_the_sweep():
    one = part((8, 24), seed=5)
    keep = torch.rand((8, 24), generator=torch.Generator().manual_seed(1)) > 0.6
    assert layerwise.masked(one, keep, "lstsq").error <= layerwise.masked(one, keep, "obs").error + 1e-9


def test_better_methods_choose_better_masks():
    """True loss after exact least squares, summed over layers. (On inputs as correlated as these SparseGPT's one block of 128 columns is no
    match for exact OBS, nor always for Wanda.)"""
    losses = dict.fromkeys(("obs", "sparsegpt", "wanda", "random"), 0.0)
    for seed in range(6):
        one = part((12, 24), seed=seed)
        for name in losses:
            (keep,) = method.get(name).keeps([one], patterns.get("unstructured"), [0.6])
            losses[name] += layerwise.masked(one, keep, "lstsq").error
    assert losses["obs"] < 0.7 * min(losses["sparsegpt"], losses["wanda"])
    assert max(losses["sparsegpt"], losses["wanda"]) < 0.7 * losses["random"]


def test_large_matrices_take_the_sweep(monkeypatch):
    one = part((8, 12))
    monkeypatch.setattr(layerwise, "EXACT_LIMIT", 0)
    assert torch.equal(layerwise.exact_keep(one, patterns.get("2:4"), None), layerwise.swept_keep(one, patterns.get("2:4"), None))


@pytest.mark.parametrize("name", ["unstructured", "unstructured:row", "block:4x1", "2:4"])
def test_one_trace_gives_the_exact_masks_of_all_levels(name):
    """The same as one for each level, and it is gone through once."""
    one, pattern = part((8, 12), seed=3), patterns.get(name)
    levels = [None] if pattern.fixed_sparsity is not None else [0.75, 0.25, 0.5]
    together = layerwise.exact_keeps(one, pattern, levels)
    for level, keep in zip(levels, together, strict=True):
        assert torch.equal(keep, layerwise.exact_keep(one, pattern, level))
        assert float(keep.float().mean()) == pytest.approx(0.5 if level is None else 1 - level, abs=0.01)


def test_how_long_exact_masks_take(monkeypatch):
    """In proportion to the multiply-accumulates, which are fewer where half of a row stays; nothing where the sweep is taken."""
    small, wide = part((8, 12)), part((8, 24))
    whole, half = patterns.get("unstructured"), patterns.get("2:4")
    seconds = layerwise.exact_seconds(small, whole, [0.5])
    assert seconds == pytest.approx(8 * 12**3 / 2 / layerwise.EXACT_SPEED)
    assert layerwise.exact_seconds(wide, whole, [0.5]) == pytest.approx(8 * seconds)
    assert layerwise.exact_seconds(small, half, [None]) == pytest.approx(seconds / 4)
    monkeypatch.setattr(layerwise, "EXACT_LIMIT", 0)
    assert layerwise.exact_seconds(small, whole, [0.5]) == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_axis_options_at_all_levels(groups):
    """Levels nest; weights are least squares on what is kept; everything removed but the mean would be an error of 1."""
    one = part((8, 6, 3, 1), groups, centred=True)
    keeps = layerwise.axis_keeps([one], [0.2, 0.5, 0.8])
    assert [int(keep.sum()) for keep in keeps] == [5, 3, 1]
    assert all((after <= before).all() for before, after in itertools.pairwise(keeps))
    solutions = layerwise.kept_columns(one, keeps)
    errors = [solution.error for solution in solutions]
    assert errors == sorted(errors)
    assert 0 < errors[-1] < 1
    for keep, solution in zip(keeps, solutions, strict=True):
        (alone,) = layerwise.kept_columns(one, [keep])
        assert torch.allclose(solution.weight, alone.weight, atol=1e-4)
        assert solution.weight.shape == (8, int(keep.sum()), 3, 1)
    (whole,) = layerwise.kept_columns(one, [torch.ones(6, dtype=torch.bool)])
    assert torch.allclose(whole.weight, one.tensor, atol=1e-4)
    assert whole.error == pytest.approx(0, abs=1e-6)
    nothing = torch.zeros(6, dtype=torch.bool)
    assert layerwise.removal_error(one, nothing, of_axis=True) == pytest.approx(1)


def test_levels_that_do_not_nest_are_solved_one_by_one():
    one = part((4, 5))
    keeps = [torch.tensor([True, True, False, False, True]), torch.tensor([False, False, True, False, True])]
    for keep, solution in zip(keeps, layerwise.kept_columns(one, keeps), strict=True):
        assert torch.allclose(solution.weight, layerwise.kept_columns(one, [keep])[0].weight, atol=1e-5)


def test_solve_is_public_and_says_what_does_not_fit():
    pruner = Pruner(tiny_workload())
    unit = pruner.units["conv1.weight:0"]
    known = pruner.statistics(["gram"]).layers
    options = hwprune.solve(unit, known, method="obs", levels=[0.25, 0.5], compensation="obs")
    assert [option.sparsity for option in options] == [0.25, 0.5]
    assert options[0].error < options[1].error
    assert options[1].weights["conv2.weight"].shape == (8, 32, 3, 3)
    with pytest.raises(UsageError, match="does not fit unit"):
        hwprune.solve(unit, known, pattern="2:4")
    with pytest.raises(UsageError, match="no Gram matrix"):
        hwprune.solve(unit, None, method="obs")
    with pytest.raises(UsageError, match="branch"):
        hwprune.solve(next(u for u in pruner.units.values() if u.branch), known)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 6),
    groups=st.integers(1, 5),
    form=st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 5)]),
)
def test_permutation_is_one_and_never_worse_than_identity(seed, rows, groups, form):
    n, m = form
    scores = torch.rand(rows, groups * m, generator=torch.Generator().manual_seed(seed))
    order = permutation.search(scores, n, m)
    assert sorted(order.tolist()) == list(range(groups * m))
    assert permutation.kept(scores, order, n, m) >= permutation.kept(scores, torch.arange(groups * m), n, m) - 1e-12


def test_permutation_against_exhaustive_search():
    found = best = identity = 0.0
    for seed in range(5):
        scores = torch.rand(3, 8, generator=torch.Generator().manual_seed(seed)).double()
        best += max(
            permutation.kept(scores, torch.tensor(order), 2, 4) for order in itertools.permutations(range(8)) if order[0] == 0
        )
        found += permutation.kept(scores, permutation.search(scores, 2, 4), 2, 4)
        identity += permutation.kept(scores, torch.arange(8), 2, 4)
    assert found <= best + 1e-9
    assert found - identity > 0.9 * (best - identity)


def test_permutation_needs_whole_groups():
    with pytest.raises(UsageError, match="groups of 4"):
        permutation.search(torch.rand(2, 6), 2, 4)


def test_least_squares_loss_is_the_definition():
    h, w = torch.eye(2, dtype=torch.float64) * 2, torch.tensor([[1.0, 2.0]])
    assert least_squares.loss(h, w, torch.tensor([[0.0, 2.0]])) == 2.0


def test_one_criterion_or_pattern_on_a_plain_tensor():
    """What the README shows."""
    weight, inputs = torch.randn(8, 16), torch.randn(100, 16)
    scores = hwprune.criteria.get("wanda").scores(weight, hwprune.LayerStatistics.of_inputs(inputs))
    keep = hwprune.patterns.get("2:4").keep_mask(scores)
    assert (keep.reshape(8, 4, 4).sum(dim=2) == 2).all()
    channels = hwprune.criteria.get("l1").axis_scores([hwprune.Part.of(weight)])
    assert torch.allclose(channels, weight.abs().sum(dim=1))
