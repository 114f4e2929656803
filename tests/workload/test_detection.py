"""Detectors: non-maximum suppression, mAP against numbers by hand and COCO's own tool, agreement, and the divergence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwprune.errors import UsageError
from hwprune.workload import detection, scoring

pytest.importorskip("faster_coco_eval")


def _image(rows):
    """Rows of (x1, y1, x2, y2, label[, score])."""
    table = torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4)
    found = {"boxes": table, "labels": torch.tensor([int(row[4]) for row in rows])}
    return found | {"scores": torch.tensor([row[5] for row in rows])} if rows and len(rows[0]) > 5 else found


def _map(images, truth, **options):
    metric = detection.mean_average_precision(lambda _: _, **options)
    states = [metric.over_set.state([([a], [b])]) for a, b in zip(images, truth, strict=True)]
    value = metric.over_set.value(states)
    assert metric.over_set.quick_value(states) == pytest.approx(value, abs=1e-9)
    return value


def test_map_by_hand():
    """Two objects, found at 0.9 and 0.5, with a false one at 0.7 between them: precision 1 up to recall 1/2, then 2/3."""
    truth = [_image([(0, 0, 10, 10, 0), (20, 20, 40, 40, 0)])]
    found = [_image([(0, 0, 10, 10, 0, 0.9), (60, 60, 70, 70, 0, 0.7), (20, 20, 40, 40, 0, 0.5)])]
    assert _map(found, truth) == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert _map([_image([(0, 0, 10, 10, 1, 0.9)])], truth) == 0.0  # of another class
    assert _map([{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}], truth) == 0.0


def test_map_at_many_overlaps():
    truth = [_image([(0, 0, 100, 10, 0)])]
    found = [_image([(0, 0, 100, 7.6, 0, 0.9)])]  # an overlap of 0.76: found at 0.5, 0.55, ... 0.75
    assert _map(found, truth, iou=None) == pytest.approx(0.6)
    assert _map(found, truth, iou=0.5) == 1.0 and _map(found, truth, iou=0.8) == 0.0


def test_classes_without_truth_do_not_count_and_classes_are_averaged():
    truth = [_image([(0, 0, 10, 10, 3), (50, 50, 60, 60, 7)])]
    found = [_image([(0, 0, 10, 10, 3, 0.9), (0, 0, 10, 10, 5, 0.99)])]
    assert _map(found, truth) == pytest.approx(0.5)


def test_suppression_keeps_the_best_of_each_class():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [30, 30, 40, 40]]])
    probabilities = torch.tensor([[[0.6, 0.0], [0.9, 0.0], [0.0, 0.5], [0.3, 0.0005]]])
    (found,) = detection.suppressed(boxes, probabilities)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.5, 0.3]) and found["labels"].tolist() == [0, 1, 0]
    (most,) = detection.suppressed(boxes, probabilities, most=1)
    assert most["boxes"].tolist() == [[1, 0, 11, 10]]
    (both,) = detection.suppressed(boxes, probabilities, overlap=0.95)
    assert len(both["boxes"]) == 4


def test_suppression_is_torchvisions():
    torchvision = pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    generator = torch.Generator().manual_seed(0)
    low = 100 * torch.rand(400, 2, generator=generator)
    boxes = torch.cat([low, low + 10 + 30 * torch.rand(400, 2, generator=generator)], 1)
    scores = torch.rand(400, 3, generator=generator)
    (found,) = detection.suppressed(boxes[None], scores[None], confidence=0.5, overlap=0.6)
    which, label = (scores > 0.5).nonzero(as_tuple=True)
    kept = torchvision.ops.batched_nms(boxes[which], scores[which, label], label, 0.6)[:300]
    assert found["boxes"].equal(boxes[which[kept]]) and found["labels"].equal(label[kept])


def test_yolos_output_is_read():
    output = torch.zeros(1, 4 + 2, 3)
    output[0, :, 1] = torch.tensor([50.0, 40, 20, 10, 0.1, 0.8])
    (found,) = detection.yolo_post()((output,))
    assert found["boxes"].tolist() == [[40, 35, 60, 45], [40, 35, 60, 45]] and found["labels"].tolist() == [1, 0]
    with pytest.raises(UsageError, match="anchors"):
        detection.yolo_head(torch.zeros(1, 4))


def test_agreement_of_boxes():
    dense = _image([(0, 0, 10, 10, 0, 0.9), (20, 20, 40, 40, 1, 0.8), (60, 60, 90, 90, 1, 0.1)])
    metric = detection.box_agreement(lambda found: found)
    assert metric.scores([dense], [dense]).tolist() == [1.0]
    moved = _image([(1, 0, 11, 10, 0, 0.9), (20, 20, 40, 40, 0, 0.8)])  # one close, one of another class
    assert metric.scores([moved], [dense]).tolist() == [0.5]
    nothing = _image([(0, 0, 10, 10, 0, 0.2)])
    assert metric.scores([nothing], [nothing]).tolist() == [1.0] and metric.scores([nothing], [dense]).tolist() == [0.0]


def _outputs(seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    low = 100 * torch.rand(4, 50, 2, generator=generator)
    boxes = torch.cat([low, low + 20], 2)
    logits = -6 + torch.zeros(4, 50, 3)
    logits[:, :3, 0] = 3.0
    return boxes + shift, logits * scale


def _head(outputs):
    return outputs[0], outputs[1].sigmoid()


def test_the_divergence_is_blind_for_boxes_of_the_background():
    far = detection.Divergence(_head)
    boxes, logits = _outputs()
    assert far((boxes, logits), (boxes, logits)).abs().max() < 1e-6
    background = boxes.clone()
    background[:, 3:] += 30
    objects = boxes.clone()
    objects[:, :3] += 5
    assert far((objects, logits), (boxes, logits)).min() > 5 * far((background, logits), (boxes, logits)).max()
    assert far((boxes, logits * 0.5), (boxes, logits)).min() > 0
    metric = detection.mean_average_precision(lambda o: detection.suppressed(*_head(o)), _head)
    found = scoring.divergence(metric, [(objects, logits)], [(boxes, logits)], [[{}] * 4])
    assert found.value == pytest.approx(float(far((objects, logits), (boxes, logits)).mean())) and found.samples == 4


def test_what_is_drawn_has_the_divergences_curvature():
    """Twice the divergence of a small step of the logits is the step's square times the mean squared gradient (Fisher)."""
    boxes, logits = _outputs()
    logits.requires_grad_()
    generator = torch.Generator().manual_seed(0)
    squares = torch.zeros_like(logits)
    rounds = 3000
    far = detection.Divergence(_head)
    for _ in range(rounds):
        (gradient,) = torch.autograd.grad(far.drawn((boxes, logits), generator), logits)
        squares += gradient.square() / rounds
    p = logits.detach().sigmoid()
    assert squares.sum() == pytest.approx(float((p * (1 - p)).sum()), rel=0.1)
    step = 0.05 * torch.randn(logits.shape, generator=generator)
    predicted = 0.5 * (squares * step.square()).sum()
    exact = (far((boxes, logits.detach() + step), (boxes, logits.detach())) * 3).sum()  # three candidates are sure in each image
    assert float(exact) == pytest.approx(float(predicted), rel=0.15)


def test_wrong_targets_are_told():
    state = detection.mean_average_precision(lambda found: found).over_set.state
    guess = _image([(0, 0, 1, 1, 0, 0.5)])
    with pytest.raises(TypeError, match="a list with a mapping of boxes"):
        state([([guess], [torch.zeros(3)])])
    with pytest.raises(TypeError, match="a list with a mapping of boxes"):
        state([([guess], torch.zeros(3, 6))])  # as Ultralytics' loaders give them
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}
    with pytest.raises(ValueError, match="1 images, targets are of 2"):
        state([([guess], [empty, empty])])
    with pytest.raises(ValueError, match="must give scores"):
        state([([empty], [empty])])
    with pytest.raises(ValueError, match="no image has a box"):
        _map([guess], [empty])
    with pytest.raises(ValueError, match="1 boxes have 2 labels"):
        state([([guess], [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(2)}])])
    with pytest.raises(UsageError, match="suppresses boxes itself"):
        detection.yolo_head(torch.zeros(1, 300, 6))
    with pytest.raises(ValueError, match="sigmoid"):
        detection.Divergence(lambda outputs: outputs)(_outputs(), _outputs())


def _crowded(seed, images=30, classes=4, most=180):
    generator = torch.Generator().manual_seed(seed)
    truth, found = [], []
    for _ in range(images):
        count = int(torch.randint(0, 60, (1,), generator=generator))
        low = 300 * torch.rand(count, 2, generator=generator)
        boxes = torch.cat([low, low + 5 + 40 * torch.rand(count, 2, generator=generator)], 1)
        labels = torch.randint(0, classes, (count,), generator=generator)
        truth.append({"boxes": boxes, "labels": labels})
        near = boxes.repeat(3, 1) + 4 * torch.randn(3 * count, 4, generator=generator)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        scores = torch.rand(3 * count, generator=generator).round(decimals=2)  # many are equal
        changed = torch.where(torch.rand(3 * count, generator=generator) < 0.2, 1, 0)
        found.append({"boxes": near[:most], "labels": ((labels.repeat(3) + changed) % classes)[:most], "scores": scores[:most]})
    return found, truth


@pytest.mark.parametrize("iou", [0.5, None])
@pytest.mark.parametrize("most", [100, 5])
def test_many_detections_are_limited_by_class_as_coco_does(iou, most):
    """And the quick form is the same number: `_map` compares them."""
    assert 0 < _map(*_crowded(0), iou=iou, most=most) < 0.95


def test_numbers_of_other_libraries_and_crowds():
    truth = [{"boxes": np.array([[0.0, 0, 10, 10]]), "labels": np.array([[2]])}]
    found = [{"boxes": [[0, 0, 10, 10]], "labels": [2], "scores": [0.5]}]
    assert _map(found, truth) == 1.0
    crowd = [
        {
            "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 90, 90]]),
            "labels": torch.tensor([0, 0]),
            "iscrowd": torch.tensor([0, 1]),
        }
    ]
    inside = [_image([(30, 30, 40, 40, 0, 0.9), (0, 0, 10, 10, 0, 0.8)])]
    metric = detection.mean_average_precision(lambda found: found)
    assert metric.over_set.value([metric.over_set.state([(inside, crowd)])]) == 1.0  # what lies in a crowd is no mistake


def test_certain_answers_in_half_precision_have_gradients():
    boxes = torch.tensor([[[0.0, 0, 10, 10]]], dtype=torch.float16)
    likely = torch.tensor([[[1.0, 0.0]]], dtype=torch.float16, requires_grad=True)
    scalar = detection.Divergence(lambda outputs: outputs).drawn((boxes, likely), torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(torch.autograd.grad(scalar, likely)[0]).all())
