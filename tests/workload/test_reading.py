"""How outputs are read: every wanted number is computed by hand, with NumPy or by a formula of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwprune.errors import UsageError, WorkloadError
from hwprune.workload import data_checks, metrics, reading, scoring
from tests.conftest import tiny_workload

DRAW = torch.Generator().manual_seed(0)


def randn(*shape):
    return torch.randn(*shape, generator=DRAW)


def score(name, outputs, targets=None, dense=None, axis=None):
    """The metric of one split in two batches of different sizes."""
    metric = metrics.get(name)
    if axis is not None:
        metric = metrics.Metric(**{**{f: getattr(metric, f) for f in metric.__slots__}, "class_axis": reading.parse_axes(axis)})

    def cut(tensors):
        tensors = tensors if isinstance(tensors, tuple) else (tensors,)
        first = len(next(t for t in tensors if t.ndim)) // 3
        return [tuple(t[:first] if t.ndim else t for t in tensors), tuple(t[first:] if t.ndim else t for t in tensors)]

    given = [None, None] if targets is None else [t[0] for t in cut(targets)]
    return scoring.score(metric, cut(outputs), given, None if dense is None else cut(dense)).value


# -- one column ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(90,), (90, 1), (90, 1, 1)])
@pytest.mark.parametrize("labels", [(90,), (90, 1)])
@pytest.mark.parametrize("kind", [torch.long, torch.float32, torch.bool, torch.uint8])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_one_column_is_a_decision(shape, labels, kind, sigmoid):
    logits = randn(90)
    dense = logits + 0.1 * randn(90)
    targets = (dense > 0.3).to(kind)
    out, whole = (x.sigmoid() if sigmoid else x for x in (logits, dense))
    wanted = np.mean((logits.numpy() > 0) == targets.numpy().astype(bool))
    assert 0.3 < wanted < 0.99
    assert score("top1", out.reshape(shape), targets.reshape(labels), whole.reshape(shape)) == pytest.approx(wanted)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("shape", [(90,), (90, 1)])
def test_agreement_of_one_column(sigmoid, shape):
    dense, found = randn(90), randn(90)
    out, whole = (x.sigmoid() if sigmoid else x for x in (found, dense))
    wanted = np.mean((dense.numpy() > 0) == (found.numpy() > 0))
    assert score("agreement", out.reshape(shape), None, whole.reshape(shape)) == pytest.approx(wanted)
    assert score("agreement", whole.reshape(shape), None, whole.reshape(shape)) == 1.0


def test_a_ruined_candidate_whose_logits_lie_between_0_and_1_is_read_as_the_dense_model_is():
    dense, found = 3 * randn(90), torch.rand(90, generator=DRAW)
    assert score("agreement", found[:, None], None, dense[:, None]) == pytest.approx(np.mean(dense.numpy() > 0))


@pytest.mark.parametrize("offset", [5.0, 250_000.0])
def test_a_column_that_is_always_on_one_side_is_no_decision(offset):
    """House prices: every answer is above 0, so agreement by sign would be 1 for any model."""
    dense = offset + randn(90)
    found = dense + 0.5 * randn(90)
    wanted = 1 - np.minimum((found - dense).double().numpy() ** 2 / dense.double().numpy().var(), 1).mean()
    assert score("agreement", found[:, None], None, dense[:, None]) == pytest.approx(wanted, rel=1e-3)
    assert wanted < 0.95


def test_answers_in_whole_numbers():
    """As scikit-learn exports them: the label itself, beside probabilities."""
    labels, other = torch.arange(90) % 4, torch.arange(90) // 2 % 4
    probabilities = torch.nn.functional.one_hot(labels, 4) * 0.6 + 0.1
    wanted = (np.mean(labels.numpy() == other.numpy()) + 1) / 2
    assert score("agreement", (other, probabilities), None, (labels, probabilities)) == pytest.approx(wanted)
    assert score("top1", (other, probabilities), labels, (labels, probabilities)) == 1.0  # labels fit the probabilities


@pytest.mark.parametrize("kind", [torch.long, torch.int32])
def test_a_model_that_ends_in_an_argmax(kind):
    answers, labels = (torch.arange(90) % 4).to(kind), torch.arange(90) // 2 % 4
    wanted = np.mean(answers.numpy() == labels.numpy())
    assert 0 < wanted < 1 and score("top1", answers, labels, answers) == pytest.approx(wanted)
    data_checks.check_labels(tiny_workload("top1"), "validation", [(answers,)], [labels])


def test_a_single_number_for_all_examples_is_told():
    own = metrics.Metric("own", lambda outputs, targets: torch.ones(len(targets)))
    with pytest.raises(WorkloadError, match="one score an example"):
        scoring.score(own, [(torch.tensor(0.7),)], [torch.zeros(5)])


# -- the dim of the classes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((24, 7), 1),
        ((24, 7, 5), 1),
        ((24, 5, 7), 2),
        ((24, 7, 4, 6), 1),
        ((24, 4, 6, 7), 3),
        ((24, 4, 7, 6), 2),
        ((24, 3, 4, 6, 7), 4),
    ],
)
def test_the_labels_shape_says_where_the_classes_are(shape, axis):
    dense = randn(*shape)
    found = dense + 0.7 * randn(*shape)
    targets = dense.argmax(axis)
    wanted = (found.numpy().argmax(axis) == targets.numpy()).reshape(24, -1).mean()
    assert 0.2 < wanted < 0.95
    assert score("top1", found, targets, dense) == pytest.approx(wanted)
    order = np.argsort(-found.numpy(), axis=axis, kind="stable").take(range(min(5, shape[axis])), axis=axis)
    five = (order == np.expand_dims(targets.numpy(), axis)).any(axis).reshape(24, -1).mean()
    assert score("top5", found, targets, dense) == pytest.approx(five)
    p = np.moveaxis(dense.double().numpy(), axis, -1)
    q = np.moveaxis(found.double().numpy(), axis, -1)
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    kl = (np.exp(p) * (p - q)).sum(-1).mean()
    told = scoring.divergence(metrics.get("top1"), [(found,)], [(dense,)], [targets])
    assert told.value == pytest.approx(kl, rel=1e-5) and told.unit == "nats"


def test_two_dims_of_one_size_are_asked_about():
    dense = randn(24, 6, 6)
    for axis in (1, 2):
        targets = dense.argmax(axis)
        with pytest.raises(WorkloadError, match=r"dims 1 and 2 could both be the classes'.*class_axis=1"):
            score("top1", dense, targets, dense)
        assert score("top1", dense, targets, dense, axis) == 1.0
        assert score("top1", dense, targets, dense, axis - 3) == 1.0


def test_a_batch_of_another_length_tells_them_apart():
    texts = [randn(4, 6, 6), randn(4, 9, 6)]
    targets = [x.argmax(2) for x in texts]
    assert scoring.score(metrics.get("top1"), [(x,) for x in texts], targets, [(x,) for x in texts]).value == 1.0


@pytest.mark.parametrize("shape", [(24, 5, 7), (24, 4, 6, 7)])
def test_without_labels_nothing_is_guessed(shape):
    dense, found = randn(*shape), randn(*shape)
    with pytest.raises(WorkloadError, match="nothing says which dim holds the classes.*class_axis=-1"):
        score("agreement", found, None, dense)
    wanted = (found.numpy().argmax(-1) == dense.numpy().argmax(-1)).reshape(24, -1).mean()
    assert score("agreement", found, None, dense, -1) == pytest.approx(wanted)
    assert score("agreement", found, None, dense, "-1") == pytest.approx(wanted)
    values = ((found - dense).double().square() / dense.double().var(unbiased=False)).reshape(24, -1).mean(1).clamp(max=1)
    assert score("agreement", found, None, dense, "none") == pytest.approx(1 - float(values.mean()), rel=1e-6)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_distributions_show_themselves(axis):
    dense, found = randn(24, 4, 6, 7).softmax(axis), randn(24, 4, 6, 7).softmax(axis)
    wanted = (found.numpy().argmax(axis) == dense.numpy().argmax(axis)).reshape(24, -1).mean()
    assert score("agreement", found, None, dense) == pytest.approx(wanted)
    p, q = dense.double().numpy(), found.double().numpy()
    kl = (p * (np.log(p) - np.log(q))).sum(axis).mean()  # of the probabilities themselves, not of their softmax
    assert scoring.divergence(metrics.get("agreement"), [(found,)], [(dense,)], [None]).value == pytest.approx(kl, rel=1e-4)


@pytest.mark.parametrize("shape", [(24, 1, 4, 6), (24, 4, 6)])
def test_a_mask_is_a_decision_at_each_position(shape):
    dense, found = randn(*shape), randn(*shape)
    targets = (dense > 0).long().reshape(24, 4, 6)
    wanted = ((found.numpy() > 0).reshape(24, 4, 6) == targets.numpy().astype(bool)).mean()
    assert score("top1", found, targets, dense) == pytest.approx(wanted)


def test_many_labels_an_example_are_decisions():
    dense = randn(24, 9)
    targets = (dense > 0.5).float()
    found = dense + randn(24, 9)
    assert score("top1", found, targets, dense) == pytest.approx(((found.numpy() > 0) == (targets.numpy() > 0)).mean())


def test_the_divergence_of_decisions_is_that_of_coins():
    a, b = randn(24, 1), randn(24, 1)
    p, q = (1 / (1 + np.exp(-x.double().numpy())) for x in (a, b))
    kl = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    for x, y in ((a, b), (a.sigmoid(), b.sigmoid())):
        told = scoring.divergence(metrics.get("top1"), [(y,)], [(x,)], [(a > 0)[:, 0].long()])
        assert told.value == pytest.approx(kl, rel=1e-4)


# -- several outputs -------------------------------------------------------------------------


def test_a_loss_before_the_answers_is_no_answer():
    dense, found = randn(24, 7), randn(24, 7)
    loss = torch.tensor(0.7)
    wanted = (found.numpy().argmax(1) == dense.numpy().argmax(1)).mean()
    assert score("agreement", (loss, found), None, (loss, dense)) == pytest.approx(wanted)
    assert score("top1", (loss, found), dense.argmax(1), (loss, dense)) == pytest.approx(wanted)
    own = metrics.Metric("own", lambda outputs, targets: (outputs.argmax(1) == targets).float())
    assert scoring.score(own, [(loss, found)], [dense.argmax(1)]).value == pytest.approx(wanted)


def test_agreement_and_divergence_cover_every_output():
    classes, other = randn(24, 7), randn(24, 7)
    boxes = randn(24, 4)
    same = score("agreement", (classes, boxes), None, (classes, boxes), "1,none")
    ruined = score("agreement", (classes, torch.zeros(24, 4)), None, (classes, boxes), "1,none")
    wrong = score("agreement", (other, boxes), None, (classes, boxes), "1,none")
    assert same == 1.0 and ruined < 0.8 and wrong < 0.8
    for worse in ((classes, torch.zeros(24, 4)), (other, boxes)):
        told = scoring.divergence(metrics.get("top1"), [worse], [(classes, boxes)], [classes.argmax(1)])
        assert told.value > 0.1
    apart = [
        scoring.divergence(metrics.get("top1"), [pair], [(classes, boxes)], [classes.argmax(1)]).value
        for pair in ((other, torch.zeros(24, 4)), (other, boxes), (classes, torch.zeros(24, 4)))
    ]
    assert apart[0] == pytest.approx(apart[1] + apart[2])


def test_labels_say_which_output_they_are_of():
    coarse, fine = randn(24, 5), randn(24, 4, 9)
    labels = fine.argmax(2)
    assert score("top1", (coarse, fine), labels, (coarse, fine)) == 1.0
    assert "output 2 (Nx4x9) holds scores of 9 classes along dim 2" in data_checks.how_read(
        metrics.get("top1"), [(coarse, fine)], [labels]
    )


# -- numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [(30,), (30, 1)])
def test_metrics_of_numbers_by_hand(targets):
    found, wanted = randn(30, 1), 2 + randn(30)
    a, b = found[:, 0].double().numpy(), wanted.double().numpy()
    assert score("mae", found, wanted.reshape(targets)) == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
    assert score("mse", found, wanted.reshape(targets)) == pytest.approx(((a - b) ** 2).mean(), rel=1e-5)
    r2 = 1 - ((a - b) ** 2).sum() / ((b - b.mean()) ** 2).sum()
    assert score("r2", found, wanted.reshape(targets)) == pytest.approx(r2, rel=1e-5)
    assert metrics.get("mae").drop(1.0, 1.5) == 0.5 and metrics.get("r2").drop(0.9, 0.8) == pytest.approx(0.1)


def test_numbers_are_refused_where_answers_are_wanted():
    workload = tiny_workload("top1")
    with pytest.raises(WorkloadError, match="mae, mse or r2"):
        data_checks.check_labels(workload, "validation", [(randn(30, 1),)], [randn(30)])


# -- what the user says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"), [(1, (1,)), (-1, (-1,)), ("none", ("none",)), ("-1,none", (-1, "none")), ([2, "none"], (2, "none"))]
)
def test_class_axis_in_words(given, wanted):
    assert reading.parse_axes(given) == wanted


@pytest.mark.parametrize("given", ["last", 1.5, True, "1,,2", [None]])
def test_class_axis_that_is_none(given):
    with pytest.raises(UsageError, match="class_axis must be"):
        reading.parse_axes(given)


@pytest.mark.parametrize("axis", [0, 3, -4])
def test_a_dim_that_the_output_has_not(axis):
    with pytest.raises(WorkloadError, match="class_axis is"):
        score("agreement", randn(24, 5, 7), None, randn(24, 5, 7), axis)


def test_what_is_plain_is_not_told():
    assert data_checks.how_read(metrics.get("top1"), [(randn(8, 4),)], [torch.zeros(8).long()]) is None
    assert "yes-or-no" in data_checks.how_read(metrics.get("agreement"), [(randn(80, 1),)], [None])
    assert "numbers" in data_checks.how_read(metrics.get("agreement"), [(9 + randn(80, 1),)], [None])
