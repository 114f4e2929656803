"""A vision transformer of timm, trained for a minute on scikit-learn's digits: `hwprune search examples/timm_vit.py:workload`.

    pip install timm
    hwprune inspect examples/timm_vit.py:workload
    hwprune search examples/timm_vit.py:workload --trials 30 --out runs/vit

Weights are kept beside the search's own (``~/.cache/hwprune``), so that a second command does not train again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

import hwprune
from hwprune.common.files import cache_folder

Split = list[tuple[torch.Tensor, torch.Tensor]]


def digits() -> tuple[Split, Split, Split]:
    """Train, validation, test: 32 x 32 images in three channels."""
    stored = load_digits()
    images = torch.from_numpy(stored.images).float()[:, None] / 8 - 1
    images = nn.functional.interpolate(images, 32, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(stored.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    splits = [
        list(zip(images[a:b].split(64), labels[a:b].split(64), strict=True)) for a, b in ((0, 1000), (1000, 1400), (1400, None))
    ]
    return splits[0], splits[1], splits[2]


def workload(name: str = "vit_tiny_patch16_224", epochs: int = 12) -> hwprune.Workload:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, img_size=32, patch_size=8, num_classes=10, depth=6)
    train, validation, test = digits()
    weights = cache_folder() / f"example-{name}-{epochs}.safetensors"
    if weights.is_file():
        model.load_state_dict(load_file(weights))
    else:
        fit(model, train, int(epochs))
        save(model, weights)
    return hwprune.Workload(
        name=name,
        model=model.eval(),
        example_inputs=(torch.zeros(1, 3, 32, 32),),
        calibration=train[:8],
        validation=validation,
        test=test,
        train=train,
        metric="top1",
    )


def fit(model: nn.Module, train: Split, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=epochs * len(train))
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for images, labels in train:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(train):.3f}", flush=True)


def save(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
