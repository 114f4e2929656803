"""ResNet-20 on CIFAR-10: a workload for `hwprune search examples/cifar_resnet20.py:workload`.

Looks for the checkpoint ``resnet20_cifar10.pt`` (a state dict; He et al. 2015, option-A shortcuts) and the images
``cifar10_small.npz`` in a folder given by argument or by the variable HWPRUNE_DATA; default ``../shared/data``:

    hwprune search examples/cifar_resnet20.py:workload folder=/path/to/data --trials 30

Without ``cifar10_small.npz`` the images come from torchvision's CIFAR10, if torchvision is installed and the data set is
in the folder already. The checkpoint can't be replaced by a download here.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import hwprune

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

Split = tuple[torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """conv3x3-BN-ReLU-conv3x3-BN; the shortcut subsamples and pads channels with zeros (option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.pad = stride, (after - before) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(x + y)


class ResNet20(nn.Module):
    """Three stages of three blocks, widths 16, 32 and 64."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3)))


def workload(folder: str = "", calibration: int = 512) -> hwprune.Workload:
    """The trained network, ``calibration`` training images, and the official test images in two halves.

    The checkpoint has seen every official training image: it scores 99.8 % on the 2,000 that the file calls ``valid``, and
    a drop measured there says little about new images. So the search validates on the first half of the test images,
    and the front is scored on the second half, which the search never sees.
    """
    root = Path(folder or os.environ.get("HWPRUNE_DATA", "") or Path(__file__).resolve().parent.parent.parent / "shared" / "data")
    checkpoint = root / "resnet20_cifar10.pt"
    if not checkpoint.is_file():
        raise FileNotFoundError(f"{checkpoint} is missing: give the folder that holds it, folder=/path/to/data")
    model = ResNet20()
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    splits = images(root)
    x, y = splits["test"]
    half = len(x) // 2
    return hwprune.Workload(
        name="resnet20-cifar10",
        model=model.eval(),
        example_inputs=(x[:1].clone(),),
        calibration=batches(splits["train"], calibration, 128),
        validation=batches((x[:half], y[:half]), half, 250),
        test=batches((x[half:], y[half:]), len(x) - half, 250),
        train=batches(splits["train"], len(splits["train"][1]), 128),
        metric="top1",
    )


def images(root: Path) -> dict[str, Split]:
    """Normalised images and labels by split."""
    packed = root / "cifar10_small.npz"
    if packed.is_file():
        with np.load(packed) as data:
            return {name: normalise(data[f"{name}_x"], data[f"{name}_y"]) for name in ("train", "test")}
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError) as error:
        raise FileNotFoundError(f"{packed} is missing, and torchvision can't be imported to replace it ({error})") from error
    train, tested = CIFAR10(root, train=True), CIFAR10(root, train=False)
    labels, held = np.array(train.targets), np.array(tested.targets)
    return {
        "train": normalise(train.data[:8000], labels[:8000]),
        "test": normalise(tested.data, held),
    }


def normalise(pixels: np.ndarray, labels: np.ndarray) -> Split:
    """uint8 NHWC -> float NCHW with the checkpoint's mean and deviation."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return ((x - MEAN) / STD).contiguous(), torch.from_numpy(labels).long().reshape(-1)


def batches(split: Split, count: int, size: int) -> list[Split]:
    """The first ``count`` examples in batches."""
    return list(zip(split[0][:count].split(size), split[1][:count].split(size), strict=True))
