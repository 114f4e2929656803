"""Detectors: mAP by the COCO protocol, agreement of boxes without labels, and how far a detector's outputs are from the dense
one's.

A detection of one image is a mapping, as torchvision and torchmetrics have it: ``boxes`` (n, 4) as x1, y1, x2, y2 in pixels,
``labels`` (n,) whole numbers, and ``scores`` (n,) in [0, 1] where it was predicted. Post-processing makes a list of them, one
for each image, of whatever the model returns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from hwprune.errors import UsageError
from hwprune.workload.average_precision import AveragePrecision, Detection
from hwprune.workload.metrics import Metric, by_example

Post = Callable[[Any], Sequence[Detection]]
Head = Callable[[Any], tuple[torch.Tensor, torch.Tensor]]
"""All candidates of a batch: boxes (N, candidates, 4) and probabilities (N, candidates, classes)."""

CONFIDENCE, OVERLAP, MOST = 0.001, 0.7, 300
"""Limits of non-maximum suppression for mAP, as usual: nearly everything counts, sorted by its score."""
AT_ONCE = 256
"""Boxes whose overlaps with all others are computed at once."""
TINY = 1e-7
SURE = 0.25
"""Score from which a box is shown to people, and compared with the dense model's."""


def yolo_head(outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates of the output that Ultralytics' exporter writes: (N, 4 + classes, anchors), centre, width and height in pixels.

    Raises:
        UsageError: there is no such output.
    """
    output = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    if output.ndim != 3 or output.shape[1] < 5 or output.shape[2] == 6 < output.shape[1]:
        raise UsageError(
            f"a YOLO output has shape (N, 4 + classes, anchors), this one {tuple(output.shape)}; of a model that suppresses "
            "boxes itself, write the function that reads its output"
        )
    centre, size = output[:, :2].transpose(1, 2), output[:, 2:4].transpose(1, 2)
    return torch.cat([centre - size / 2, centre + size / 2], dim=2), output[:, 4:].transpose(1, 2)


def suppressed(
    boxes: torch.Tensor,
    probabilities: torch.Tensor,
    *,
    confidence: float = CONFIDENCE,
    overlap: float = OVERLAP,
    most: int = MOST,
) -> list[dict[str, torch.Tensor]]:
    """Detections by non-maximum suppression within each class.

    Args:
        boxes, probabilities: see `Head`.
        confidence: candidates of a class with a smaller probability are left out.
        overlap: intersection over union with a better box of the same class from which a box is left out.
        most: boxes of an image, the best ones.
    """
    found = []
    for corners, scores in zip(boxes.float(), probabilities.float(), strict=True):
        candidate, label = (scores > confidence).nonzero(as_tuple=True)
        best = scores[candidate, label].argsort(descending=True, stable=True)[: 10 * most]
        candidate, label = candidate[best], label[best]
        kept = _survivors(corners[candidate], label, overlap, most)
        found.append({"boxes": corners[candidate[kept]], "scores": scores[candidate[kept], label[kept]], "labels": label[kept]})
    return found


def yolo_post(confidence: float = CONFIDENCE, overlap: float = OVERLAP, most: int = MOST) -> Post:
    """Post-processing of `yolo_head`'s kind of output."""
    return functools.partial(_of_yolo, confidence=confidence, overlap=overlap, most=most)


def _of_yolo(outputs: Any, **limits: Any) -> list[dict[str, torch.Tensor]]:
    return suppressed(*yolo_head(outputs), **limits)


def mean_average_precision(
    post: Post, head: Head | None = None, *, iou: float | None = 0.5, most: int = 100, name: str | None = None
) -> Metric:
    """mAP of COCO's protocol (101 points of recall), computed by the package faster-coco-eval.

    Targets are a list with one mapping of ``boxes`` and ``labels`` for each image.

    Args:
        post: makes detections of the tuple of all outputs of a batch.
        head: makes candidates of it, from which the divergence that guides a search is computed (see `Divergence`); without it
            a search looks at all numbers of the outputs alike, of which nearly all belong to the background.
        iou: overlap from which a box is found; None: the mean over 0.5, 0.55, ... 0.95.
        most: detections of an image that count, the best ones.

    Raises:
        UsageError: faster-coco-eval is not installed.
    """
    try:
        import faster_coco_eval  # noqa: F401 - asked early: the first score comes minutes later
    except ImportError as error:
        raise UsageError("mAP needs the package faster-coco-eval: pip install 'hwprune[metrics]'") from error
    named = name or ("map" if iou is None else f"map{round(100 * iou)}")
    return Metric(
        named, by_example, whole=True, over_set=AveragePrecision(iou, most), post=post,
        divergence=None if head is None else Divergence(head),
    )  # fmt: skip


def box_agreement(post: Post, head: Head | None = None, *, iou: float = 0.5, sure: float = SURE) -> Metric:
    """How far a detector finds the boxes that the dense one finds; needs no labels.

    The score of an image is F1: twice the pairs of boxes of one class that overlap by ``iou``, over all boxes of both with a
    score of ``sure`` or more; 1 where neither finds any.
    """

    def scores(found: Sequence[Detection], wanted: Sequence[Detection]) -> torch.Tensor:
        return torch.tensor([_f1(_sure(a, sure), _sure(b, sure), iou) for a, b in zip(found, wanted, strict=True)])

    return Metric(
        "box_agreement", scores, whole=True, agreement=True, post=post, divergence=None if head is None else Divergence(head)
    )


class Divergence:
    """How far candidates are from the dense model's, an image at a time: smooth, and blind for boxes of the background.

    The KL divergence of all yes-or-no probabilities in nats, plus 1 - IoU of each candidate's box weighed with the probability
    that the dense model sees something there; over the number of candidates that it is sure of, at least 1.
    """

    def __init__(self, head: Head) -> None:
        self._head = head

    def __call__(self, outputs: Any, dense: Any) -> torch.Tensor:
        """(N,) of two batches of outputs; has a gradient."""
        (boxes, mine), (wanted_boxes, wanted) = self._head(outputs), self._head(dense)
        if bool(((wanted < 0) | (wanted > 1)).any()):
            raise ValueError("the head must give probabilities, from 0 to 1; of logits take the sigmoid")
        p, q = (x.double().clamp(TINY, 1 - TINY) for x in (wanted, mine))
        nats = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(dim=(1, 2))
        best = wanted.double().amax(dim=2)
        moved = (best * (1 - overlaps(boxes.double(), wanted_boxes.double()))).sum(dim=1)
        return (nats + moved) / (best > SURE).sum(dim=1).clamp(min=1)

    def drawn(self, outputs: Any, generator: torch.Generator) -> torch.Tensor:
        """A scalar whose gradients have the divergence's Fisher information as their mean square.

        The divergence itself has no gradient at the dense model. Decisions are drawn from the model's own probabilities (Kunstner
        et al. 2019), and boxes count as means of Gaussians as wide as they are.
        """
        boxes, probabilities = (x.double() for x in self._head(outputs))
        known = probabilities.detach()
        p = probabilities.clamp(TINY, 1 - TINY)
        yes = torch.rand(p.shape, generator=generator, device=p.device, dtype=p.dtype) < known
        likely = torch.where(yes, p.log(), (-p).log1p()).sum()
        size = (boxes[..., 2:] - boxes[..., :2]).detach().clamp(min=1.0)
        noise = torch.randn(boxes.shape, generator=generator, device=p.device, dtype=boxes.dtype)
        shifts = noise * known.amax(dim=2, keepdim=True).sqrt() / torch.cat([size, size], dim=-1)
        return -likely + (shifts * boxes).sum()


def overlaps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes (..., 4), one by one; 0 of empty ones."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(x[..., 2:] - x[..., :2]).clamp(min=0).prod(dim=-1) for x in (a, b)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-12)


def _survivors(boxes: torch.Tensor, labels: torch.Tensor, overlap: float, most: int) -> torch.Tensor:
    """Places of the boxes, sorted from the best, that no better one of their class covers."""
    kept: list[int] = []
    left = np.ones(len(boxes), dtype=bool)
    for start in range(0, len(boxes), AT_ONCE):
        rows = boxes[start : start + AT_ONCE]
        covers = (overlaps(rows[:, None], boxes[None]) > overlap) & (labels[start : start + AT_ONCE, None] == labels[None])
        for place, row in enumerate(covers.numpy(), start):
            if left[place]:
                kept.append(place)
                if len(kept) == most:
                    return torch.tensor(kept)
                left &= ~row
    return torch.tensor(kept, dtype=torch.long)


def _sure(found: Detection, sure: float) -> Detection:
    chosen = found["scores"] >= sure
    return {name: found[name][chosen] for name in ("boxes", "scores", "labels")}


def _f1(found: Detection, wanted: Detection, iou: float) -> float:
    """Pairs are made from the best boxes of ``found`` on, each with the free box that it overlaps most."""
    free = list(range(len(wanted["boxes"])))
    pairs = 0
    for place in found["scores"].argsort(descending=True).tolist():
        same = [i for i in free if wanted["labels"][i] == found["labels"][place]]
        if not same:
            continue
        each = overlaps(wanted["boxes"][same].float(), found["boxes"][place].float().expand(len(same), 4))
        if float(each.max()) >= iou:
            pairs += 1
            free.remove(same[int(each.argmax())])
    count = len(found["boxes"]) + len(wanted["boxes"])
    return 2 * pairs / count if count else 1.0
