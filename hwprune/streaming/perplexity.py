"""Perplexity with one block in memory at a time; logits of one window at a time."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from hwprune.common.telling import Tell, silent
from hwprune.streaming.blocks import block_of, entering, leaving
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates


@torch.no_grad()
def window_losses(folder: LanguageFolder, ids: torch.Tensor, step: Tell = silent, scratch: Path | None = None) -> torch.Tensor:
    """(windows,) mean negative log-likelihood of each window's tokens after its first, in nats.

    Args:
        ids: (windows, tokens).
        scratch: where hidden states are kept meanwhile.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        ends = folder.ends()
        first, given = entering(ends, folder.blocks, ids[:1])
        states = HiddenStates(Path(place) / "states", (len(ids), *first.shape[1:]), torch.float32)
        for window in range(len(ids)):
            states.write(window, entering(ends, folder.blocks, ids[window : window + 1])[0])
        del ends  # an embedding of a large vocabulary is larger than a block
        for index in range(folder.depth):
            step("evaluating blocks", index, folder.depth)
            block = block_of(folder, index, given[index])
            for window in range(len(ids)):
                states.write(window, block(states.read(window)))
            del block
        return losses_of(folder, ids, states)


@torch.no_grad()
def losses_of(folder: LanguageFolder, ids: torch.Tensor, states: HiddenStates) -> torch.Tensor:
    """(windows,) mean negative log-likelihood, from what the last block has made."""
    ends: Any = folder.ends()
    found = []
    for window in range(len(ids)):
        one = ids[window : window + 1]
        logits = leaving(ends, folder.blocks, one, states.read(window))
        found.append(float(functional.cross_entropy(logits[0, :-1].float(), one[0, 1:])))
    return torch.tensor(found, dtype=torch.float64)


def perplexity(losses: torch.Tensor) -> float:
    """exp of the mean loss of all tokens, of windows of one length."""
    return math.exp(float(losses.mean()))
