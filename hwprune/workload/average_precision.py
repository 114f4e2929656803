"""COCO's mAP: computed by faster-coco-eval, and once more from pairs made for each image, for many parts of a split."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Detection = Mapping[str, torch.Tensor]
Rows = np.ndarray[Any, np.dtype[np.float64]]


class AveragePrecision:
    """COCO's mAP of images; a state is a list of images."""

    def __init__(self, iou: float | None, most: int) -> None:
        self._iou, self._most = iou, most

    def state(self, parts: Sequence[tuple[Any, Any]]) -> list[_Image]:
        return [image for output, target in parts for image in self._images(output, target)]

    def _images(self, output: Any, target: Any) -> list[_Image]:
        if not isinstance(target, (list, tuple)) or not all(
            isinstance(one, Mapping) and {"boxes", "labels"} <= set(one) for one in target
        ):
            raise TypeError(
                "targets must be a list with a mapping of boxes (n, 4; x1, y1, x2, y2) and labels (n,) for each image"
            )
        found = list(output)
        if len(found) != len(target):
            raise ValueError(f"post-processing gave {len(found)} images, targets are of {len(target)}")
        if not all("scores" in one for one in found):
            raise ValueError("post-processing must give scores of the boxes that it found")
        return [
            _Image(_rows(guess), _rows(truth), self._thresholds(), self._most) for guess, truth in zip(found, target, strict=True)
        ]

    def _thresholds(self) -> Rows:
        return np.linspace(0.5, 0.95, 10) if self._iou is None else np.array([self._iou])

    def value(self, states: Sequence[Any]) -> float:
        """By faster-coco-eval."""
        from faster_coco_eval import COCO, COCOeval_faster

        images = [image for state in states for image in state]
        truth = [(number, row) for number, image in enumerate(images) for row in image.truth.tolist()]
        if not truth:
            raise ValueError("no image has a box in its targets")
        classes = sorted({int(row[5]) for _, row in truth})
        found = np.concatenate([np.insert(image.found[:, :6], 0, number, axis=1) for number, image in enumerate(images)])
        found = found[np.isin(found[:, 6], classes)]  # classes without truth have no precision
        if not len(found):
            return 0.0
        data = {
            "images": [{"id": number} for number in range(len(images))],
            "categories": [{"id": label, "name": str(label)} for label in classes],
            "annotations": [
                {
                    "id": number, "image_id": image, "category_id": int(row[5]), "bbox": row[:4], "area": row[2] * row[3],
                    "iscrowd": int(row[6]),
                } for number, (image, row) in enumerate(truth, 1)
            ],
        }  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            gold = COCO(data)
            evaluation = COCOeval_faster(gold, gold.loadRes(found), iouType="bbox", print_function=lambda *_: None)
            evaluation.params.iouThrs = self._thresholds()
            evaluation.params.maxDets = [self._most]
            evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (thresholds, recalls, classes) of all areas, most detections
        valid = precision[precision > -1]
        return float(valid.mean()) if valid.size else math.nan

    def quick_value(self, states: Sequence[Any]) -> float:
        """The same from pairs that were made once for each image; of crowds, which COCO treats apart, another number."""
        images = [image for state in states for image in state]
        labels = {label for image in images for label in image.counts}
        precisions = []
        for label in labels:
            pairs = [image.pairs[label] for image in images if label in image.pairs]
            count = sum(image.counts.get(label, 0) for image in images)
            scores = np.concatenate([scores for scores, _ in pairs]) if pairs else np.zeros(0)
            hits = (
                np.concatenate([hits for _, hits in pairs], axis=1)
                if pairs
                else np.zeros((len(self._thresholds()), 0), dtype=bool)
            )
            order = np.argsort(-scores, kind="mergesort")
            precisions.append([_precision(own[order], count) for own in hits])
        return float(np.mean(precisions)) if precisions else math.nan


class _Image:
    """Detections and truth of an image, as rows, and which detections find a box, by label.

    Args:
        found, truth: see `_rows`.
        thresholds: overlaps from which a box is found.
        most: detections of a class that count, the best ones.
    """

    def __init__(self, found: Rows, truth: Rows, thresholds: Rows, most: int) -> None:
        self.found, self.truth = found, truth
        self.counts = {int(label): int((truth[:, 5] == label).sum()) for label in np.unique(truth[:, 5])}
        self.pairs: dict[int, tuple[Rows, np.ndarray[Any, np.dtype[np.bool_]]]] = {}
        for label in np.unique(found[:, 5]):
            mine = found[found[:, 5] == label][:most]
            wanted = truth[truth[:, 5] == label]
            each = _overlaps_of_rows(mine, wanted)
            hits = np.stack([_hits(each, min(threshold, 1 - 1e-10)) for threshold in thresholds])
            self.pairs[int(label)] = (mine[:, 4], hits)


def _overlaps_of_rows(found: Rows, truth: Rows) -> Rows:
    """(detections, boxes) intersection over union of rows."""
    low = np.maximum(found[:, None, :2], truth[None, :, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:4], truth[None, :, :2] + truth[None, :, 2:4])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = found[:, 2:4].prod(axis=1)[:, None] + truth[:, 2:4].prod(axis=1)[None]
    result: Rows = shared / np.maximum(areas - shared, 1e-12)
    return result


def _hits(each: Rows, threshold: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which detections, the best first, find a box that no better one has found."""
    hits = np.zeros(len(each), dtype=bool)
    if not each.shape[1]:
        return hits
    free = np.ones(each.shape[1], dtype=bool)
    for place in np.flatnonzero(each.max(axis=1) >= threshold):
        own = np.where(free, each[place], -1.0)
        best = len(own) - 1 - int(np.argmax(own[::-1]))  # of equal ones the last, as COCO has it
        if own[best] >= threshold:
            hits[place], free[best] = True, False
    return hits


def _precision(hits: np.ndarray[Any, np.dtype[np.bool_]], count: int) -> float:
    """Mean of the best precision at 101 recalls or more."""
    if not len(hits):
        return 0.0
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(found / count, np.linspace(0, 1, 101), side="left")
    return float(np.where(places < len(best), best[np.minimum(places, len(best) - 1)], 0.0).mean())


def _rows(found: Detection) -> Rows:
    """(n, 7): corner, width, height, score (1 of truth), label, and whether it is a crowd; the best first."""
    boxes = torch.as_tensor(found["boxes"]).reshape(-1, 4).double()
    columns = {
        name: torch.as_tensor(found[name]).reshape(-1).double() for name in ("scores", "labels", "iscrowd") if name in found
    }
    if any(len(column) != len(boxes) for column in columns.values()):
        raise ValueError(f"{len(boxes)} boxes have {', '.join(f'{len(c)} {n}' for n, c in columns.items())}")
    scores = columns.get("scores", torch.ones(len(boxes), dtype=torch.float64))
    crowd = columns.get("iscrowd", torch.zeros(len(boxes), dtype=torch.float64))
    table = torch.cat(
        [boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).clamp(min=0), torch.stack([scores, columns["labels"], crowd], 1)], 1
    )
    rows: Rows = table[scores.argsort(descending=True, stable=True)].numpy()
    return rows
