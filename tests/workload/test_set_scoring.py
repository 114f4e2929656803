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
    """torchmetrics takes a sigmoid of a call's numbers if one of them is no probability: parts of it would be mixed up."""
    x, y = _data()
    x = x.clamp(0.01, 0.99)
    x[::50] = 3.0  # one in fifty, so that most small parts hold none
    for size, parts in ((30, None), (150, 2)):
        batches = _batches(x, y, size=size)
        if parts:
            with pytest.raises(WorkloadError, match=f"there are {parts} parts"):
                scoring.score(_auroc(), *batches)
        else:
            wanted = _auroc().over_set.value([_auroc().over_set.state([(b[0][:, 0], t)]) for b, t in zip(*batches, strict=True)])
            assert scoring.score(_auroc(), *batches).value == pytest.approx(wanted, abs=1e-6)
    probabilities = scoring.score(_auroc(), *_batches(_data()[0].sigmoid(), y, size=150))
    assert probabilities.value == pytest.approx(roc_auc_score(y, _data()[0]), abs=1e-6) and probabilities.half_width < 0.1


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
    output, second = set_scoring.divided(batch, target, [1])
    assert output[0].tolist() == batch[0][1:2].tolist() and output[1].tolist() == [1.0]
    if isinstance(target, (list, tuple)) and isinstance(target[0], dict):
        assert second[0] is target[1] and len(second) == 1 and type(second) is type(target)
    elif isinstance(target, dict):
        assert second["boxes"].tolist() == target["boxes"][1:2].tolist()
    elif isinstance(target, tuple):
        assert second[0].tolist() == [[2.0, 3.0]] and second[1].tolist() == [1]
    elif target is None:
        assert second is None


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


@pytest.mark.parametrize(
    "target",
    [
        [{"boxes": torch.rand(2, 4), "area": 3.5, "crowd": False, "masks": None, "file": "a.png"}, {"boxes": torch.zeros(0, 4)}],
        {"mask": torch.ones(1, 2, 2, dtype=torch.bool), 0: torch.arange(3), "number": torch.tensor(7)},
        (torch.arange(3), torch.rand(3)),
        {"boxes": np.arange(6.0).reshape(3, 2), "one": np.int64(4)},
        torch.tensor([4]),
    ],
)
def test_targets_of_any_form_survive_the_file(tmp_path, target):
    sample_files.write_batches([((torch.zeros(1, 3),), target), ((torch.zeros(1, 3),), None)], tmp_path / "samples.npz")
    found, nothing = sample_files.read_targets(tmp_path / "samples.npz")
    assert nothing is None and type(found) is type(target)
    leaves, wanted = torch.utils._pytree.tree_flatten(found), torch.utils._pytree.tree_flatten(target)
    assert leaves[1] == wanted[1]
    for a, b in zip(leaves[0], wanted[0], strict=True):
        assert torch.as_tensor(a).equal(torch.as_tensor(b)) if isinstance(b, (torch.Tensor, np.ndarray)) else a == b
    assert [name for name in np.load(tmp_path / "samples.npz", allow_pickle=False).files if "input" in name]


def test_what_can_not_be_stored_is_left_out(tmp_path):
    batches = [((torch.zeros(1, 3),), [object()]), ((torch.zeros(1, 3),), torch.zeros(2, dtype=torch.bfloat16))]
    sample_files.write_batches(batches, tmp_path / "samples.npz")
    assert sample_files.read_targets(tmp_path / "samples.npz") == [None, None]


def test_a_function_that_wants_whole_batches_gets_them():
    def of_batches(xs, ys):
        if any(len(x) < 30 for x in xs):
            raise ValueError("too few")
        return float((torch.cat(xs)[:, 0] > 0).float().mean())

    x, y = _data()
    found = scoring.score(hwprune.Metric.of_set("share", of_batches), *_batches(x, y, size=50))
    assert found.value == pytest.approx(float((x > 0).float().mean())) and found.half_width > 0


def test_a_metric_named_like_one_of_ours_is_not_taken_for_it():
    from torchmetrics.regression import MeanAbsoluteError

    mine = hwprune.Metric.of_torchmetrics(MeanAbsoluteError(), name="mae", post=lambda x: 3 * x)
    found = metrics.get(mine)
    assert found.name == "mae (own)" and metrics.of_record({"metric": found.name}) is None
    assert metrics.get("mae").name == "mae" and metrics.get(metrics.METRICS["mae"]) is metrics.METRICS["mae"]
    with pytest.raises(hwprune.HwpruneError, match="not the class"):
        metrics.get(MeanAbsoluteError)


def test_numbers_judged_by_torchmetrics_are_trained_by_squared_error():
    from torchmetrics.regression import MeanSquaredError

    from hwprune.workload.task_loss import task_loss

    for classes in (1, 3):
        x, y = torch.randn(40, 5), torch.randn(40, classes)
        data = list(zip(x.split(10), y.split(10), strict=True))
        model = torch.nn.Linear(5, classes).eval()
        workload = hwprune.Workload("numbers", model, (x[:1],), data, data, metric=MeanSquaredError())
        loss = task_loss(workload, model)
        assert float(loss(model(x), y).detach()) == pytest.approx(float((model(x) - y).square().mean().detach()))
    soft = torch.rand(40, 3).softmax(1)
    data = list(zip(x.split(10), soft.split(10), strict=True))
    loss = task_loss(hwprune.Workload("soft", model, (x[:1],), data, data, metric=lambda a, b: (a - b).mean(1)), model)
    wanted = torch.nn.functional.cross_entropy(model(x), soft)
    assert float(loss(model(x), soft).detach()) == pytest.approx(float(wanted.detach()))


def test_the_object_is_known_by_what_it_is_and_not_by_what_was_computed_with_it():
    from torchmetrics.classification import BinaryF1Score

    from hwprune.pruning.code_identity import identity_of

    used = BinaryF1Score()
    used(torch.tensor([0.2, 0.8]), torch.tensor([0, 1]))
    fresh, other = metrics.get(BinaryF1Score()), metrics.get(used)
    before = identity_of(fresh)
    x, y = _data()
    scoring.score(fresh, [(x.sigmoid(),)], [y])
    assert identity_of(fresh) == before == identity_of(other)


def test_agreement_of_a_set_compares_with_the_dense_model():
    metric = hwprune.Metric.of_set(
        "same", lambda xs, ys: float((torch.cat(xs) == torch.cat(ys)).float().mean()), agreement=True, post=lambda x: x > 0
    )
    dense = [(torch.tensor([[1.0], [-1.0], [2.0], [-2.0], [3.0], [4.0]]),)]
    other = [(torch.tensor([[1.0], [1.0], [2.0], [-9.0], [3.0], [-4.0]]),)]
    assert scoring.score(metric, other, [None], dense).value == pytest.approx(4 / 6)
