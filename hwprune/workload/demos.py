"""The embedded workloads: scikit-learn's digits, upsampled, with a small network trained in seconds.

The trained weights are cached as safetensors under ``$XDG_CACHE_HOME/hwprune`` (or ``~/.cache/hwprune``); a
cache that can't be written or read is not an error, the network is trained again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hwprune.common.files import cache_folder, write_atomic
from hwprune.errors import UnknownNameError
from hwprune.workload.workload import Workload

Array = np.ndarray[Any, Any]

CACHE_VERSION = 1
"""Raise it when a network or its training changes."""


class ConvBlock(nn.Module):
    """conv3x3 - BN - ReLU - conv3x3 - BN, plus a shortcut; ``middle`` channels are the block's own."""

    def __init__(self, before: int, middle: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, middle, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if before == after and stride == 1 else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.shortcut(x) + self.bn2(self.conv2(y))
        return torch.relu(y)


class DigitsNet(nn.Module):
    """A small residual network whose blocks are wide inside, so that pruning pays."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        widths = [(16, 64, 16, 1), (16, 128, 32, 2), (32, 128, 32, 1), (32, 256, 64, 2), (64, 256, 64, 1)]
        self.blocks = nn.Sequential(*(ConvBlock(*width) for width in widths))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        y: torch.Tensor = self.fc(self.blocks(x).mean(dim=(2, 3)))
        return y


class AttentionBlock(nn.Module):
    """Pre-norm attention with fused QKV and an MLP."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, tokens, width))
        z: torch.Tensor = self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        return x + z


class DigitsTransformer(nn.Module):
    """A small vision transformer: 4x4 patches of a 16x16 image."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, 16, width))
        self.blocks = nn.Sequential(*(AttentionBlock(width, 4, 256) for _ in range(3)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 10)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        y: torch.Tensor = self.fc(self.norm(self.blocks(x)).mean(dim=1))
        return y


def digits() -> Workload:
    """A residual CNN on 16x16 digits."""
    return _workload("digits", DigitsNet, epochs=6, rate=0.006, decay=5e-4)


def digits_vit() -> Workload:
    """A vision transformer on 16x16 digits."""
    return _workload("digits-vit", DigitsTransformer, epochs=30, rate=0.004, decay=0.05)


DEMOS: dict[str, Callable[[], Workload]] = {"digits": digits, "digits-vit": digits_vit}


def get(name: str) -> Workload:
    """The demo of that name. Raises `UnknownNameError`."""
    if name not in DEMOS:
        raise UnknownNameError("demo", name, DEMOS)
    return DEMOS[name]()


def _table() -> tuple[Array, Array]:
    """The pixels, (1797, 64) from 0 to 16, and the digits that they show, as scikit-learn has them.

    Its file is read without importing scikit-learn, which takes longer than all else that the demos need.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in found.submodule_search_locations or () if found else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    return pixels, digits


def _data() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Split of the 1,797 digits by a fixed permutation: 797 train, 500 validation, 500 test."""
    pixels, digits = _table()
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    images = nn.functional.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    images = (images - 0.305) / 0.34
    labels = torch.tensor(digits, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    cuts = {"train": order[:797], "validation": order[797:1297], "test": order[1297:]}
    return {split: (images[index].contiguous(), labels[index]) for split, index in cuts.items()}


def _batches(data: tuple[torch.Tensor, torch.Tensor], size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(torch.split(data[0], size), torch.split(data[1], size), strict=True))


def _workload(name: str, make: Callable[[], nn.Module], epochs: int, rate: float, decay: float) -> Workload:
    data = _data()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        if not _load(name, model):
            _train(model, data["train"], epochs, rate, decay)
            _save(name, model)
    calibration = (data["train"][0][:256], data["train"][1][:256])
    return Workload(
        name=name,
        model=model.eval(),
        example_inputs=(data["validation"][0][:1].clone(),),
        calibration=_batches(calibration, 128),
        validation=_batches(data["validation"], 250),
        test=_batches(data["test"], 250),
        train=_batches(data["train"], 64),
        metric="top1",
        source=f"demo:{name}",
    )


def _train(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], epochs: int, rate: float, decay: float) -> None:
    images, labels = data
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    steps = epochs * ((len(labels) + 63) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(labels), generator=generator), 64):
            shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
            loss = nn.functional.cross_entropy(model(images[index].roll(shift, (2, 3))), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
            optimizer.step()
            schedule.step()
    model.eval()


def _cache_file(name: str) -> Path:
    return cache_folder() / f"{name}-{CACHE_VERSION}.safetensors"


def _load(name: str, model: nn.Module) -> bool:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(_cache_file(name)))
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def _save(name: str, model: nn.Module) -> None:
    from safetensors.torch import save

    try:
        write_atomic(_cache_file(name), save(model.state_dict()))
    except OSError:
        return
