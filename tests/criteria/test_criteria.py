"""One contract for all criteria, then each against its formula."""

from __future__ import annotations

import pytest
import torch

from hwprune import criteria
from hwprune.errors import UnknownNameError, UsageError
from hwprune.layers.part import MAKES, OTHER, READS, SCALES, Part
from hwprune.layers.statistics import LayerStatistics

EXAMPLES = 7


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def weight():
    return torch.randn(6, 4, 3, 3, generator=generator())


def full_statistics(shape, groups=1, seed=0):
    """Everything that calibration could know of a layer, at random."""
    out, inner, *kernel = shape
    d = inner * torch.Size(kernel).numel()
    x = torch.randn(groups, 40, d, generator=generator(seed)) + 0.5
    mean = x.mean(dim=1, keepdim=True)
    channels = torch.rand(4, inner * groups, generator=generator(seed + 1))
    return LayerStatistics(
        groups=groups, rows=40, weight_outputs=out, weight_inputs=inner,
        covariance=(x - mean).mT @ (x - mean) / 40, mean=mean[:, 0], input_square=x.square().mean(dim=1),
        channel_mean=channels[0], channel_variance=channels[1], channel_abs=channels[2], channel_zero=channels[3],
        grad_abs=torch.rand(shape, generator=generator(seed + 2)), fisher=torch.rand(shape, generator=generator(seed + 3)),
        taylor_in=torch.randn(EXAMPLES, inner * groups, generator=generator(seed + 4)),
        taylor_out=torch.randn(EXAMPLES, out, generator=generator(seed + 5)),
    )  # fmt: skip


def parts_of(weight):
    """An axis of six indices: a convolution makes it, a batch norm scales it, a grouped convolution and a linear layer read it."""
    reader = torch.randn(8, 3, 3, 3, generator=generator(8))  # two groups of three inputs
    linear = torch.randn(5, 12, generator=generator(9))  # two features for each index
    plain = torch.arange(6)[:, None]
    return [
        Part("make.weight", MAKES, weight, 0, plain, statistics=full_statistics(weight.shape)),
        Part("norm.weight", SCALES, torch.tensor([1.0, -2, 0.5, 0, 3, 1]), 0, plain),
        Part("norm.bias", OTHER, torch.randn(6, generator=generator(3)), 0, plain),
        Part(
            "read.weight",
            READS,
            linear,
            1,
            torch.arange(12).reshape(6, 2),
            centred=True,
            statistics=full_statistics((5, 12), seed=20),
        ),
        Part("wide.weight", READS, reader[:, :, 0, 0].repeat(1, 2), 1, plain, statistics=full_statistics((8, 6), seed=30)),
    ]


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_contract(name, weight):
    criterion = criteria.get(name)
    assert criterion.name == name
    known = full_statistics(weight.shape)
    if criterion.on_weights:
        scores = criterion.scores(weight, known)
        assert scores.shape == weight.shape
        assert torch.isfinite(scores).all()
        assert (scores >= 0).all()
        assert torch.equal(scores, criterion.scores(weight, known))
        if name != "random":
            zeros = criterion.scores(torch.zeros_like(weight), known)
            assert not zeros.any()
    else:
        with pytest.raises(UsageError, match="not single weights"):
            criterion.scores(weight, known)
    parts = parts_of(weight)
    assert criterion.unavailable(parts) is None
    axis = criterion.axis_scores(parts)
    assert axis.shape == (6,)
    assert torch.isfinite(axis).all()
    assert (axis >= 0).all()
    assert torch.equal(axis, criterion.axis_scores(parts))
    assert axis.unique().numel() > 1


@pytest.mark.parametrize("name", [name for name, one in criteria.CRITERIA.items() if one.needs])
def test_missing_statistics_are_said(name, weight):
    criterion = criteria.get(name)
    with pytest.raises(UsageError, match="were not collected"):
        criterion.scores(weight) if criterion.on_weights else criterion.axis_scores([Part.of(weight, READS)])


@pytest.mark.parametrize("name", ["slimming", "obs", "flap", "apoz"])
def test_axes_without_what_a_criterion_reads_are_unavailable(name, weight):
    parts = [Part.of(weight)]
    assert name in criteria.get(name).unavailable(parts)
    with pytest.raises(UsageError, match="on this axis"):
        criteria.get(name).axis_scores(parts)


@pytest.mark.parametrize("name", ["l1", "l2", "lamp"])
def test_magnitude_of_zero_is_zero(name):
    assert criteria.get(name).scores(torch.zeros(2, 2)).sum() == 0


def test_l1_and_l2_of_an_axis_by_hand():
    parts = [Part.of(torch.tensor([[3.0, -4.0], [1.0, 0.0]])), Part.of(torch.tensor([[12.0], [-2.0]]))]
    assert criteria.get("l1").axis_scores(parts).tolist() == [19.0, 3.0]
    assert criteria.get("l2").axis_scores(parts).tolist() == pytest.approx([13.0, 5**0.5])


@pytest.mark.parametrize(("a", "b"), [("l1", "l2"), ("l1", "lamp"), ("taylor", "obd")])
def test_equal_ranking_means_equal_order(a, b, weight):
    known = full_statistics(weight.shape)
    assert criteria.get(a).ranking == criteria.get(b).ranking
    first, second = (torch.argsort(criteria.get(n).scores(weight, known).reshape(-1), stable=True) for n in (a, b))
    assert torch.equal(first, second)


def test_lamp_against_loops():
    w = torch.tensor([3.0, -1.0, 2.0, 2.0])
    squares = w.square()
    expected = [float(s / squares[squares >= s].sum()) for s in squares]
    assert criteria.get("lamp").scores(w[None])[0].tolist() == pytest.approx(expected)


def test_wanda_and_ria_against_loops():
    x = torch.randn(50, 3, generator=generator(1))
    w = torch.randn(2, 3, generator=generator(2))
    known = LayerStatistics.of_inputs(x)
    norms = [float(x[:, j].square().mean().sqrt()) for j in range(3)]
    wanda, ria = (criteria.get(name).scores(w, known) for name in ("wanda", "ria"))
    for i in range(2):
        for j in range(3):
            a = abs(float(w[i, j]))
            assert float(wanda[i, j]) == pytest.approx(a * norms[j], rel=1e-5)
            relative = a / float(w[:, j].abs().sum()) + a / float(w[i].abs().sum())
            assert float(ria[i, j]) == pytest.approx(relative * norms[j] ** 0.5, rel=1e-5)


def test_wanda_of_a_convolution_has_a_norm_for_every_kernel_position():
    w = torch.ones(2, 1, 2, 2)
    known = LayerStatistics(input_square=torch.tensor([[1.0, 4.0, 9.0, 16.0]]), weight_inputs=1)
    assert criteria.get("wanda").scores(w, known)[0, 0].tolist() == [[1, 2], [3, 4]]


def test_obs_and_sparsegpt_against_the_inverse():
    x = torch.randn(60, 5, generator=generator(1)) @ torch.randn(5, 5, generator=generator(2))
    w = torch.randn(3, 5, generator=generator(3)).double()
    h = x.double().T @ x.double() / 60
    h += 0.01 * h.diagonal().mean() * torch.eye(5)
    known = LayerStatistics.of_inputs(x)
    inverse = torch.linalg.inv(h)
    assert torch.allclose(criteria.get("obs").scores(w, known), w.square() / (2 * inverse.diagonal()), rtol=1e-4)
    trailing = torch.stack([torch.linalg.inv(h[j:, j:])[0, 0] for j in range(5)])
    assert torch.allclose(criteria.get("sparsegpt").scores(w, known), w.square() / trailing, rtol=1e-4)


def test_obs_of_an_axis_is_half_the_relative_growth_of_the_error_of_each_index_alone():
    x = torch.randn(80, 6, generator=generator(1)) @ torch.randn(6, 6, generator=generator(2))
    w = torch.randn(4, 6, generator=generator(3))
    part = Part("w", READS, w, 1, torch.arange(6).reshape(3, 2), statistics=LayerStatistics.of_inputs(x))
    h = x.double().T @ x.double() / 80
    damped = h + 0.01 * h.diagonal().mean() * torch.eye(6)
    y = w.double()
    for index, score in enumerate(criteria.get("obs").axis_scores([part]).tolist()):
        keep = torch.ones(6, dtype=torch.bool)
        keep[2 * index : 2 * index + 2] = False
        solved = torch.zeros(4, 6, dtype=torch.float64)
        solved[:, keep] = torch.linalg.solve(damped[keep][:, keep], damped[keep] @ y.T).T
        change = solved - y
        expected = float(((change @ damped) * change).sum()) / float(((y @ h) * y).sum()) / 2
        assert score == pytest.approx(expected, rel=1e-4)


def test_taylor_of_an_axis_is_taken_where_it_is_read(weight):
    parts = parts_of(weight)
    change = torch.zeros(EXAMPLES, 6)
    for part in parts:
        if part.kind == READS:
            for index, positions in enumerate(part.positions):
                change[:, index] += part.statistics.taylor_in[:, positions].sum(dim=1)
    assert torch.allclose(criteria.get("taylor").axis_scores(parts), change.square().mean(dim=0))
    alone = parts[0].statistics.taylor_out.square().mean(dim=0)
    assert torch.allclose(criteria.get("taylor").axis_scores(parts[:1]), alone)


def test_gradient_and_obd_of_an_axis_sum_over_its_producer(weight):
    parts = parts_of(weight)
    known = parts[0].statistics
    assert torch.allclose(criteria.get("gradient").axis_scores(parts), (weight.abs() * known.grad_abs).sum(dim=(1, 2, 3)))
    assert torch.allclose(criteria.get("obd").axis_scores(parts), (weight.square() * known.fisher).sum(dim=(1, 2, 3)) / 2)


def test_slimming_is_the_scale(weight):
    assert criteria.get("slimming").axis_scores(parts_of(weight)).tolist() == [1, 2, 0.5, 0, 3, 1]


def test_fpgm_is_smallest_at_the_geometric_median():
    filters = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]])
    scores = criteria.get("fpgm").axis_scores([Part.of(filters)])
    expected = [float(sum((a - b).norm() for b in filters)) for a in filters]
    assert scores.tolist() == pytest.approx(expected)
    assert int(scores.argmin()) == 0


def test_activation_criteria_by_hand():
    x = torch.tensor([[0.0, 1.0, 4.0], [0.0, 3.0, 4.0], [2.0, 0.0, 4.0], [0.0, 0.0, 4.0]])
    w = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]])
    part = Part.of(w, READS, LayerStatistics.of_inputs(x))
    assert criteria.get("apoz").axis_scores([part]).tolist() == [0.25, 0.5, 1.0]
    assert criteria.get("activation").axis_scores([part]).tolist() == [0.5, 1.0, 4.0]
    # Population variances 0.75, 1.5 and 0; squared column norms 1, 5 and 10: a constant input costs nothing.
    assert criteria.get("flap").axis_scores([part]).tolist() == pytest.approx([0.75, 7.5, 0.0])


def test_channels_of_grouped_convolutions():
    """Two groups of two inputs: index i owns input i of both groups."""
    part = Part("w", READS, torch.zeros(4, 2, 1, 1), 1, torch.tensor([[0], [1]]), groups=2)
    assert part.channels(torch.tensor([1.0, 2.0, 10.0, 20.0])).tolist() == [[1.0, 10.0], [2.0, 20.0]]


def test_random_differs_between_layers_and_seeds(weight):
    one, other = criteria.get("random").scores(weight), criteria.get("random").scores(weight + 1)
    assert not torch.equal(one, other)
    assert not torch.equal(one, criteria.Random(seed=1).scores(weight))
    assert 0.4 < float(one.mean()) < 0.6


def test_unknown_names_list_the_choices():
    with pytest.raises(UnknownNameError, match="l1, l2, lamp"):
        criteria.get("l3")


def test_restricted_statistics_are_those_of_the_cut_layer():
    """Against statistics computed from the inputs that are left."""
    x = torch.randn(30, 6, generator=generator(4))
    inner = torch.tensor([4, 0, 3])
    small = LayerStatistics.of_inputs(x).restricted(torch.arange(2), inner)
    expected = LayerStatistics.of_inputs(x[:, inner])
    for name in ("gram", "input_square", "channel_mean", "channel_variance", "channel_zero", "channel_abs"):
        assert torch.allclose(getattr(small, name), getattr(expected, name)), name


def test_restricted_statistics_of_groups():
    known = full_statistics((8, 2, 3, 3), groups=4)
    small = known.restricted(torch.tensor([2, 3, 6, 7]), torch.tensor([1]))  # groups 1 and 3, second input of each
    assert small.groups == 2
    assert torch.equal(small.input_square, known.input_square[[1, 3]][:, 9:18])
    assert torch.equal(small.covariance[0], known.covariance[1, 9:18, 9:18])
    assert torch.equal(small.mean[1], known.mean[3, 9:18])
    assert small.channel_mean.tolist() == known.channel_mean[[3, 7]].tolist()
    assert torch.equal(small.fisher, known.fisher[[2, 3, 6, 7]][:, 1:])
    assert torch.equal(small.taylor_in, known.taylor_in[:, [3, 7]])
