"""Metrics of a whole split: their value by hand, their intervals, how batches come apart, and how they are stored."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import hwprune
from hwprune.errors import CandidateFailure, WorkloadError
from hwprune.workload import metrics, sample_files, scoring, set_scoring

torchmetrics = pytest.importorskip("torchmetrics")


def _data(count=300, seed=0, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    return labels.float() + noise * torch.randn(count, generator=generator), labels


def _batches(x, y, size=40):
    return [(part[:, None],) for part in x.split(size)], list(y.split(size))


def _auroc(**options):
    from torchmetrics.classification import BinaryAUROC

    return hwprune.Metric.of_torchmetrics(BinaryAUROC(), name="auroc", post=lambda x: x[:, 0], **options)


def _auroc_by_ranks(xs, ys):
    y = torch.cat(ys)[torch.cat(xs)[:, 0].argsort()]
    positive = int(y.sum())
    ranks = float((y * torch.arange(1, len(y) + 1)).sum())
    return (ranks - positive * (positive + 1) / 2) / (positive * (len(y) - positive))


def test_a_torchmetrics_object_gives_what_sklearn_gives():
    x, y = _data()
    found = scoring.score(_auroc(), *_batches(x, y))
    assert found.value == pytest.approx(roc_auc_score(y, x), abs=1e-6)
    assert found.ci_low < found.value < found.ci_high and found.samples == 300 and found.unit == "auroc"


def test_batches_stay_together_where_dividing_them_changes_the_number():
    """torchmetrics takes a sigmoid of a call's numbers if one of them is no probability: examples alone would be mixed up."""
    x, y = _data()
    assert scoring.score(_auroc(), *_batches(x, y, size=30)).value == pytest.approx(roc_auc_score(y, x), abs=1e-6)
    with pytest.raises(WorkloadError, match="there are 2 parts"):
        scoring.score(_auroc(), *_batches(x, y, size=150))
    probabilities = scoring.score(_auroc(), *_batches(x.sigmoid(), y, size=150))
    assert probabilities.value == pytest.approx(roc_auc_score(y, x), abs=1e-6) and probabilities.half_width < 0.1


def test_workloads_take_the_object_as_it_is():
    from torchmetrics.classification import BinaryF1Score
    from torchmetrics.text import WordErrorRate

    assert metrics.get(BinaryF1Score()).higher_is_better and metrics.get(BinaryF1Score()).name == "binaryf1score"
    assert not metrics.get(WordErrorRate()).higher_is_better


def test_intervals_hold_the_truth_as_often_as_they_say():
    """And those of drops: both models see the same examples, so that a paired interval is much narrower than two single ones."""
    held, paired, narrow = 0, 0, 0
    truth = 0.5 * (1 + math.erf(1 / (1 * math.sqrt(2) * math.sqrt(2))))  # of two Gaussians one standard deviation apart
    worse = 0.5 * (1 + math.erf(1 / (math.sqrt(1 + 0.3**2) * math.sqrt(2) * math.sqrt(2))))
    rounds = 60
    metric = hwprune.Metric.of_set("auroc", _auroc_by_ranks)
    for seed in range(rounds):
        x, y = _data(seed=seed)
        other = x + 0.3 * torch.randn(len(x), generator=torch.Generator().manual_seed(1000 + seed))
        dense, outputs, labels = _batches(x, y)[0], _batches(other, y)[0], _batches(x, y)[1]
        value, drop = scoring.score_and_drop(metric, outputs, dense, labels)
        alone = scoring.score(metric, dense, labels)
        held += alone.ci_low <= truth <= alone.ci_high
        paired += drop.ci_low <= truth - worse <= drop.ci_high
        narrow += drop.half_width < 0.8 * alone.half_width
        assert drop.value == pytest.approx(alone.value - value.value)
    assert 0.87 * rounds <= held and 0.87 * rounds <= paired and narrow > 0.9 * rounds


def test_the_same_outputs_have_no_drop():
    outputs, labels = _batches(*_data())
    drop = scoring.paired_drop(_auroc(), outputs, outputs, labels)
    assert (drop.value, drop.ci_low, drop.ci_high) == (0, 0, 0)


def test_lower_is_better_turns_the_drop():
    metric = hwprune.Metric.of_set(
        "far", lambda xs, ys: float((torch.cat(xs)[:, 0] - torch.cat(ys)).square().mean().sqrt()), higher_is_better=False
    )
    x, y = _data()
    (dense, labels), (worse, _) = _batches(x, y), _batches(x + 1, y)
    assert scoring.paired_drop(metric, worse, dense, labels).ci_low > 0


def test_states_that_can_not_be_put_together_are_computed_again():
    """A metric of means says nothing wrong where its copies would be put together as if each had seen as much."""
    from torchmetrics import MeanMetric

    class Odd(MeanMetric):
        higher_is_better = True
        seen = 0

        def update(self, outputs, targets):  # keeps a plain number that merge_state knows nothing of
            self.seen += float(outputs.sum())

        def compute(self):
            return torch.tensor(float(self.seen))

        def reset(self):
            super().reset()
            self.seen = 0

    x, y = _data()
    assert scoring.score(hwprune.Metric.of_torchmetrics(Odd()), *_batches(x, y)).value == pytest.approx(float(x.sum()), rel=1e-4)


@pytest.mark.parametrize(
    "target",
    [
        [{"boxes": torch.zeros(0, 4)}, {"boxes": torch.ones(3, 4)}, {"boxes": torch.ones(1, 4)}],
        ({"boxes": torch.zeros(0, 4)}, {"boxes": torch.ones(3, 4)}, {"boxes": torch.ones(1, 4)}),
        {"boxes": torch.arange(24.0).reshape(3, 2, 4), "labels": torch.zeros(3, 2)},
        (torch.arange(6.0).reshape(3, 2), torch.arange(3)),
        torch.arange(3),
        None,
    ],
)
def test_batches_come_apart_into_examples(target):
    batch = (torch.arange(12.0).reshape(3, 4), torch.arange(3.0))
    assert set_scoring._count(batch, target) == 3
    pieces = set_scoring.divided(batch, target, 3)
    assert [piece[0].tolist() for piece, _ in pieces] == [[row] for row in batch[0].tolist()]
    second = pieces[1][1]
    if isinstance(target, (list, tuple)) and isinstance(target[0], dict):
        assert second[0] is target[1] and len(second) == 1
    elif isinstance(target, dict):
        assert second["boxes"].tolist() == target["boxes"][1:2].tolist()
    elif isinstance(target, tuple):
        assert second[0].tolist() == [[2.0, 3.0]] and second[1].tolist() == [1]


def test_boxes_of_all_images_in_one_tensor_are_no_examples():
    """As Ultralytics' loaders give them: a row a box, its image in the first column. By chance there may be as many as images."""
    seen = []

    def count(outputs, targets):
        seen.append([len(target) for target in targets])
        return float(len(targets))

    outputs = [(torch.zeros(4, 2),) for _ in range(6)]
    targets = [torch.zeros(4 if number == 0 else number + 5, 6) for number in range(6)]
    scoring.score(hwprune.Metric.of_set("boxes", count), outputs, targets)
    assert seen[0] == [4, 6, 7, 8, 9, 10]


def test_too_few_parts_and_faults_are_told():
    outputs, labels = [(torch.zeros(9, 2),)], [torch.zeros(7)]
    with pytest.raises(WorkloadError, match="at least 5 batches"):
        scoring.score(hwprune.Metric.of_set("x", lambda *_: 1.0), outputs, labels)
    with pytest.raises(WorkloadError, match="'x' raised ZeroDivisionError"):
        scoring.score(hwprune.Metric.of_set("x", lambda *_: 1 / 0), outputs, [torch.zeros(9)])
    with pytest.raises(CandidateFailure, match="NaN"):
        scoring.score(hwprune.Metric.of_set("x", lambda *_: math.nan), outputs, [torch.zeros(9)])
    with pytest.raises(CandidateFailure, match="NaN or infinity in batch 0"):
        scoring.score(hwprune.Metric.of_set("x", lambda *_: 1.0), [(torch.full((9, 2), math.nan),)], [torch.zeros(9)])
    with pytest.raises(hwprune.HwpruneError, match="whether more is better"):
        hwprune.Metric.of_torchmetrics(torchmetrics.SumMetric())
    with pytest.raises(WorkloadError, match="average over classes"):
        scoring.score(hwprune.Metric.of_set("x", lambda *_: torch.zeros(3)), outputs, [torch.zeros(9)])


def test_targets_of_any_form_survive_the_file(tmp_path):
    image = {"boxes": torch.rand(2, 4), "labels": torch.tensor([1, 2]), "area": 3.5, "crowd": False}
    batches = [
        ((torch.zeros(2, 3),), [image, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "area": 0, "crowd": True}])
    ]
    batches += [((torch.zeros(1, 3),), {"mask": torch.ones(1, 2, 2)}), ((torch.zeros(1, 3),), torch.tensor([4]))]
    batches += [((torch.zeros(1, 3),), None), ((torch.zeros(1, 3),), ["a text"])]
    sample_files.write_batches(batches, tmp_path / "samples.npz")
    first, second, third, fourth, fifth = sample_files.read_targets(tmp_path / "samples.npz")
    assert first[0]["boxes"].equal(image["boxes"]) and first[0]["area"] == 3.5 and first[1]["crowd"] is True
    assert first[1]["labels"].dtype == torch.int64 and second["mask"].shape == (1, 2, 2) and third.tolist() == [4]
    assert fourth is None and fifth is None
    assert all(np.load(tmp_path / "samples.npz", allow_pickle=False)[name] is not None for name in ("00000.input0", "00000.form"))


def test_agreement_of_a_set_compares_with_the_dense_model():
    metric = hwprune.Metric.of_set(
        "same", lambda xs, ys: float((torch.cat(xs) == torch.cat(ys)).float().mean()), agreement=True, post=lambda x: x > 0
    )
    dense = [(torch.tensor([[1.0], [-1.0], [2.0], [-2.0], [3.0], [4.0]]),)]
    other = [(torch.tensor([[1.0], [1.0], [2.0], [-9.0], [3.0], [-4.0]]),)]
    assert scoring.score(metric, other, [None], dense).value == pytest.approx(4 / 6)
