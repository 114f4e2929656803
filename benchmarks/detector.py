"""A detector in the manner of YOLOv8, on drawings made here, as a workload; and the same as an ONNX file with its decoding.

    hwprune search benchmarks/detector.py:workload
    python benchmarks/detector.py --onnx detector.onnx
    hwprune search detector.onnx --data benchmarks/detector.py:onnx_data

The network has what people find hard to prune: C2f blocks whose halves meet again in a concatenation, SPPF, a neck that goes up and
down, decoupled heads at three strides, boxes as expectations over a distribution. Nothing in it knows of hwprune. It is trained when it
is first asked for (some minutes on two cores), and then kept in hwprune's cache folder.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hwprune
from hwprune.common.files import cache_folder
from hwprune.workload import detection

SIZE, CLASSES, BINS = 128, 3, 8
STRIDES = (8, 16, 32)
COUNTS = {"train": 3000, "validation": 500, "test": 500}
EPOCHS, RATE, BATCH = 14, 4e-3, 32
VERSION = 1

Targets = list[dict[str, torch.Tensor]]


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inner: int, outer: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=1e-3, momentum=0.03)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, width: int, *, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.shortcut = Conv(width, width, 3), Conv(width, width, 3), shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Two halves, of which one goes through bottlenecks; all of them meet in one concatenation."""

    def __init__(self, inner: int, outer: int, count: int = 1, *, shortcut: bool = False) -> None:
        super().__init__()
        self.half = outer // 2
        self.cv1, self.cv2 = Conv(inner, 2 * self.half), Conv((2 + count) * self.half, outer)
        self.m = nn.ModuleList(Bottleneck(self.half, shortcut=shortcut) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            y.append(block(y[-1]))
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    def __init__(self, width: int, kernel: int = 5) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2), Conv(2 * width, width)
        self.pool = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = [self.cv1(x)]
        for _ in range(3):
            y.append(self.pool(y[-1]))
        return self.cv2(torch.cat(y, 1))


class Head(nn.Module):
    """Boxes and classes apart; a box's side is the expectation of a distribution (Generalized Focal Loss, Li et al. 2020)."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        sides, kinds = max(16, widths[0] // 2, 4 * BINS), max(widths[0], 16)
        self.boxes = nn.ModuleList(
            nn.Sequential(Conv(w, sides, 3), Conv(sides, sides, 3), nn.Conv2d(sides, 4 * BINS, 1)) for w in widths
        )
        self.kinds = nn.ModuleList(
            nn.Sequential(Conv(w, kinds, 3), Conv(kinds, kinds, 3), nn.Conv2d(kinds, CLASSES, 1)) for w in widths
        )
        for stride, box, kind in zip(STRIDES, self.boxes, self.kinds, strict=True):
            nn.init.constant_(box[-1].bias, 1.0)
            nn.init.constant_(kind[-1].bias, math.log(3 / CLASSES / (SIZE / stride) ** 2))
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32))
        centres, strides = [], []
        for stride in STRIDES:
            steps = (torch.arange(SIZE // stride) + 0.5) * stride
            y, x = torch.meshgrid(steps, steps, indexing="ij")
            centres.append(torch.stack([x, y], -1).reshape(-1, 2))
            strides.append(torch.full((len(centres[-1]), 1), float(stride)))
        self.register_buffer("centres", torch.cat(centres))
        self.register_buffer("strides", torch.cat(strides))

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sides = torch.cat([f(x).flatten(2) for f, x in zip(self.boxes, maps, strict=True)], 2)
        kinds = torch.cat([f(x).flatten(2) for f, x in zip(self.kinds, maps, strict=True)], 2)
        sides = sides.transpose(1, 2).reshape(sides.shape[0], -1, 4, BINS)
        away = (sides.softmax(-1) * self.bins).sum(-1) * self.strides
        boxes = torch.cat([self.centres - away[..., :2], self.centres + away[..., 2:]], -1)
        return boxes, kinds.transpose(1, 2), sides


class Detector(nn.Module):
    """(N, 3, 128, 128) -> boxes (N, 336, 4) as corners in pixels, and logits (N, 336, classes)."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96, 128)) -> None:
        super().__init__()
        a, b, c, d, e = widths
        self.stem, self.down2 = Conv(3, a, 3, 2), Conv(a, b, 3, 2)
        self.c2 = C2f(b, b, shortcut=True)
        self.down3, self.c3 = Conv(b, c, 3, 2), C2f(c, c, 2, shortcut=True)
        self.down4, self.c4 = Conv(c, d, 3, 2), C2f(d, d, 2, shortcut=True)
        self.down5, self.c5 = Conv(d, e, 3, 2), C2f(e, e, shortcut=True)
        self.sppf = SPPF(e)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.n4, self.n3 = C2f(e + d, d), C2f(d + c, c)
        self.back4, self.m4 = Conv(c, c, 3, 2), C2f(c + d, d)
        self.back5, self.m5 = Conv(d, d, 3, 2), C2f(d + e, e)
        self.head = Head((c, d, e))

    def everything(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        p3 = self.c3(self.down3(self.c2(self.down2(self.stem(x)))))
        p4 = self.c4(self.down4(p3))
        p5 = self.sppf(self.c5(self.down5(p4)))
        n4 = self.n4(torch.cat([self.up(p5), p4], 1))
        n3 = self.n3(torch.cat([self.up(n4), p3], 1))
        m4 = self.m4(torch.cat([self.back4(n3), n4], 1))
        m5 = self.m5(torch.cat([self.back5(m4), p5], 1))
        return self.head([n3, m4, m5])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes, logits, _ = self.everything(x)
        return boxes, logits


class AsExported(nn.Module):
    """The output of Ultralytics' exporter: (N, 4 + classes, anchors), centre, width and height in pixels, then probabilities."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        boxes, logits = self.model(images)
        low, high = boxes[..., :2], boxes[..., 2:]
        return torch.cat([(low + high) / 2, high - low, logits.sigmoid()], -1).transpose(1, 2)


def drawings(count: int, seed: int) -> tuple[torch.Tensor, Targets]:
    """Images in [0, 1] of circles, squares and triangles before noise, and where these are; about three each, some covered."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5
    images = np.empty((count, 3, SIZE, SIZE), dtype=np.float32)
    targets: Targets = []
    for number in range(count):
        coarse = rng.random((3, 9, 9), dtype=np.float32)
        grid = np.linspace(0, 8, SIZE)
        ground = np.stack([[np.interp(grid, np.arange(9), row) for row in channel] for channel in coarse])
        ground = np.stack([[np.interp(grid, np.arange(9), column) for column in channel.T] for channel in ground]).transpose(
            0, 2, 1
        )
        boxes, labels = [], []
        for _ in range(int(rng.integers(1, 6))):
            kind, radius, turn = int(rng.integers(CLASSES)), float(rng.uniform(6, 26)), float(rng.uniform(0, 2 * math.pi))
            cx, cy = rng.uniform(radius, SIZE - radius, 2)
            if kind == 0:
                inside = (xs - cx) ** 2 + (ys - cy) ** 2 <= radius**2
            else:  # a polygon is where all its edges have it on one side
                corners = 4 if kind == 1 else 3
                edges = turn + 2 * math.pi * np.arange(corners) / corners
                reach = radius * math.cos(math.pi / corners)
                inside = np.all([(xs - cx) * math.cos(t) + (ys - cy) * math.sin(t) <= reach for t in edges], axis=0)
            if not inside.any():
                continue
            ground[:, inside] = rng.random((3, 1)) * 0.8 + 0.2 * ground[:, inside]
            rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
            boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            labels.append(kind)
        images[number] = ground + 0.06 * rng.standard_normal(ground.shape)
        targets.append({"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels).long()})
    return torch.from_numpy(images).clamp(0, 1), targets


def batches(split: str, size: int = 50) -> list[tuple[torch.Tensor, Targets]]:
    images, targets = drawings(COUNTS[split], list(COUNTS).index(split))
    return [(images[i : i + size], targets[i : i + size]) for i in range(0, len(images), size)]


def assigned(
    boxes: torch.Tensor, scores: torch.Tensor, targets: Targets, centres: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, A, 4) and soft labels (N, A, classes) that candidates are trained to give (TOOD, Feng et al. 2021)."""
    wanted, soft = torch.zeros_like(boxes), torch.zeros_like(scores)
    for i, target in enumerate(targets):
        truth, labels = target["boxes"].to(boxes.device), target["labels"].to(boxes.device)
        if not len(truth):
            continue
        inside = ((centres[None] > truth[:, None, :2]) & (centres[None] < truth[:, None, 2:])).all(-1)
        iou = detection.overlaps(truth[:, None].expand(-1, len(centres), 4), boxes[i][None].expand(len(truth), -1, 4))
        fit = scores[i].t()[labels].sqrt() * iou.pow(6) * inside
        best = fit.topk(min(10, fit.shape[1]), dim=1)
        chosen = torch.zeros_like(fit).scatter(1, best.indices, 1.0) * inside
        owner = (iou * chosen + chosen * 1e-9).argmax(0)
        used = chosen.any(0)
        wanted[i][used] = truth[owner[used]]
        scale = (iou * chosen).amax(1) / (fit * chosen).amax(1).clamp(min=1e-9)
        strength = (fit * chosen * scale[:, None])[owner, torch.arange(len(centres))]
        soft[i, used, labels[owner[used]]] = strength[used].clamp(max=1.0)
    return wanted, soft


def loss_of(
    boxes: torch.Tensor, logits: torch.Tensor, targets: Targets, centres: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        wanted, soft = assigned(boxes, logits.sigmoid(), targets, centres)
    weight = soft.sum(-1)
    whole = weight.sum().clamp(min=1.0)
    kinds = nn.functional.binary_cross_entropy_with_logits(logits, soft, reduction="sum") / whole
    apart = (weight * (1 - detection.overlaps(boxes, wanted))).sum() / whole
    return kinds + 5 * apart, wanted, weight


class DetectionLoss:
    """``loss(outputs, targets)`` of what the model returns."""

    def __init__(self, centres: torch.Tensor) -> None:
        self.centres = centres

    def __call__(self, outputs: tuple[torch.Tensor, torch.Tensor], targets: Targets) -> torch.Tensor:
        return loss_of(*outputs, targets, self.centres.to(outputs[0].device))[0]


def train(model: Detector, epochs: int = EPOCHS) -> None:
    images, targets = drawings(COUNTS["train"], 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    head = model.head
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.split(torch.randperm(len(images), generator=generator), BATCH):
            x, truth = images[index], [targets[i] for i in index]
            if torch.rand((), generator=generator) < 0.5:
                x = x.flip(3)
                truth = [
                    {
                        **t,
                        "boxes": torch.stack(
                            [SIZE - t["boxes"][:, 2], t["boxes"][:, 1], SIZE - t["boxes"][:, 0], t["boxes"][:, 3]], 1
                        ),
                    }
                    for t in truth
                ]
            boxes, logits, sides = model.everything(x)
            loss, wanted, weight = loss_of(boxes, logits, truth, head.centres)
            loss = loss + 1.5 * spread(sides, wanted, weight, head)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(x)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(images):.3f}", flush=True)
    model.eval()


def spread(sides: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor, head: Head) -> torch.Tensor:
    """Distribution focal loss: the two bins beside the right distance."""
    used = weight > 0
    if not bool(used.any()):
        return sides.sum() * 0
    low, high = head.centres - wanted[..., :2], wanted[..., 2:] - head.centres
    right = (torch.cat([low, high], -1) / head.strides).clamp(0, BINS - 1.01)[used]
    left = right.floor().long()
    likely = sides[used].log_softmax(-1)
    near = likely.gather(-1, left[..., None])[..., 0] * (left + 1 - right) + likely.gather(-1, left[..., None] + 1)[..., 0] * (
        right - left
    )
    return -(near.mean(-1) * weight[used]).sum() / weight.sum().clamp(min=1.0)


def trained() -> Detector:
    path = cache_folder() / f"benchmark-detector-{VERSION}.pt"
    torch.manual_seed(0)
    model = Detector()
    if path.is_file():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        train(model)
        torch.save(model.state_dict(), path)
    return model.eval()


def head(outputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    boxes, logits = outputs
    return boxes, logits.sigmoid()


def workload() -> hwprune.Workload:
    model = trained()
    data = {split: batches(split) for split in COUNTS}
    return hwprune.Workload(
        name="detector",
        model=model,
        example_inputs=(data["validation"][0][0][:1].clone(),),
        calibration=data["train"][:6],
        validation=data["validation"],
        test=data["test"],
        train=data["train"],
        metric=detection.mean_average_precision(lambda outputs: detection.suppressed(*head(outputs)), head),
        loss=DetectionLoss(model.head.centres),
    )


def onnx_data() -> dict[str, object]:
    """For ``--data`` beside the ONNX file: a decoded output, no loss, and mAP."""
    return {
        "calibration": batches("train")[:6], "validation": batches("validation"), "test": batches("test"),
        "metric": detection.mean_average_precision(detection.yolo_post(), detection.yolo_head),
    }  # fmt: skip


def unlabelled() -> dict[str, object]:
    """The same without labels: how far the dense model's boxes are found."""
    images = {split: [(x, None) for x, _ in batches(split)] for split in ("validation", "test")}
    return {
        **images,
        "calibration": images["validation"],
        "metric": detection.box_agreement(detection.yolo_post(), detection.yolo_head),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True)
    options = parser.parse_args()
    x = torch.zeros(2, 3, SIZE, SIZE)
    program = torch.onnx.export(
        AsExported(trained()), (x,), dynamo=True, input_names=["images"], output_names=["output0"], dynamic_shapes=({0: "batch"},)
    )
    program.save(options.onnx)


if __name__ == "__main__":
    main()
